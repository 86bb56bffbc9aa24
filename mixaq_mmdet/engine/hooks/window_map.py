"""WindowMapHook: pictures of high, low and pruned windows while a model trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from mixaq_mmdet.quantization.checks import check_number

from ..argument_checks import check_positive, known_arguments_only


@HOOKS.register_module()
class WindowMapHook(Hook):
    """Draws the window map of the first image of a batch through the runner's visualizer, so in every backend it has.

    The image goes through the backbone once more, in eval mode with the ratios of the training step; nothing of the
    training changes.

    Args:
        interval: iterations between pictures.
        dpi: dots per inch of the picture.
    """

    priority = 'LOW'

    @known_arguments_only()
    def __init__(self, interval: int = 500, dpi: int = 80) -> None:
        self.interval = check_positive(interval, 'WindowMapHook: interval', usual=500)
        self.dpi = check_number(dpi, 'WindowMapHook: dpi', least=1, usual=80)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Draw at every ``interval``-th iteration, on rank 0."""
        if data_batch is None or not self.every_n_train_iters(runner, self.interval) or not is_main_process():
            return
        runner.visualizer.add_image('window_map', self.picture(runner.model, data_batch), step=runner.iter + 1)

    @torch.no_grad()
    def picture(self, model: Any, data_batch: Any) -> np.ndarray:
        """(H, W, 3) uint8 RGB of the batch's first image."""
        # engine lies below analysis, and matplotlib loads only when a picture is due
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from mixaq_mmdet.analysis.inspection import as_picture, depths_of, two_branch
        from mixaq_mmdet.analysis.window_map import draw_window_map

        model = model.module if is_model_wrapper(model) else model
        backbone = two_branch(model)
        first = {name: values[:1] for name, values in data_batch.items()}
        image = model.data_preprocessor(first, False)['inputs'][:1]
        configured, training = backbone._configured, backbone.training
        sampled, active = backbone._sampled, backbone._active_ratios
        try:
            backbone.eval()
            backbone._configured = active
            with backbone.record_windows() as records:
                backbone(image)
        finally:
            backbone._configured, backbone._sampled = configured, sampled
            backbone.train(training)
        figure = Figure(dpi=self.dpi)
        draw_window_map(figure, as_picture(image[0], model.data_preprocessor), list(records), depths_of(backbone))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
