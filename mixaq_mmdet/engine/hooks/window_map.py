"""WindowMapHook: pictures of high, low and pruned windows while a model trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from mixaq_mmdet.checks import check_number, check_positive

from ..argument_checks import known_arguments_only


@HOOKS.register_module()
class WindowMapHook(Hook):
    """Draws the window map of the first image of a batch with the runner's visualizer, in all of its backends.

    The image runs through the backbone once more, in eval mode with the ratios of the training step. This does not
    change the training.

    Args:
        interval: iterations between images.
        dpi: dots per inch of the image.
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
        training = backbone.training
        # the ratios of train mode, in eval mode
        with backbone.at_ratios(backbone.low_ratios, backbone.prune_ratios), backbone.record_windows() as records:
            try:
                backbone.eval()
                backbone(image)
            finally:
                backbone.train(training)
        figure = Figure(dpi=self.dpi)
        draw_window_map(figure, as_picture(image[0], model.data_preprocessor), list(records), depths_of(backbone))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
