"""The pictures of tools/visualize.py."""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from mixaq_mmdet.engine.argument_checks import type_name
from mixaq_mmdet.engine.command_line import load_config
from mixaq_mmdet.engine.damaged_files import check_work_dir
from mixaq_mmdet.engine.damaged_images import check_image_file
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.quantization import Quantizer, quantizer_mode
from mixaq_mmdet.reporting.figures import save_figure

from .activation_histogram import Watch, draw_histogram, find_layer
from .detections import draw_detections
from .inspection import Inspection, inspect, two_branch
from .window_map import draw_scores, draw_window_map


def float_config(cfg: Config) -> Config:
    """The same detector without quantizers and without low or pruned windows; of a converted one its simulated twin."""
    plain = copy.deepcopy(cfg)
    backbone = plain.model.backbone
    for key in ('quant', 'low_ratios', 'prune_ratios'):
        backbone.pop(key, None)
    if type_name(backbone.type) == 'IntegerSwin':
        backbone.type = 'TwoBranchSwin'
        for key in ('engine', 'high'):
            backbone.pop(key, None)
    if plain.model.type == 'QuantDetector':
        plain.model.type = plain.model.pop('base')
        plain.model.pop('detector_quant', None)
    return plain


def quantizers_off(detector: Any, image: str) -> Inspection:
    """An image through the same weights without rounding, every window high; the detector stays as it was."""
    with two_branch(detector).at_ratios(0.0, 0.0), quantizer_mode(detector, 'float'):
        return inspect(detector, image)


def float_beside(cfg: Config, detector: Any, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Float detections by the name of their model, and what to say about it; neither where there is no such model."""
    if options.float:
        plain = load_detector(float_config(cfg), options.float, options.device, '--float')
        return {'float': inspect(plain, options.image).sample.pred_instances}, ''
    if not any(isinstance(module, Quantizer) for module in detector.modules()):
        return {}, ''
    found = quantizers_off(detector, options.image).sample.pred_instances
    return {'quantizers off': found}, 'quantizers off: the same weights without rounding, every window high'


def read_rgb(path: str) -> np.ndarray:
    """An image file as (H, W, 3) RGB."""
    import mmcv

    return mmcv.imread(path, channel_order='rgb')


def run(options: argparse.Namespace) -> Iterator[Path]:
    """Write the pictures and yield their paths."""
    cfg = load_config(options)
    check_image_file(options.image, 'image')
    check_work_dir(options.out, '-o')
    detector: Any = load_detector(cfg, options.checkpoint, options.device)
    two_branch(detector)
    layer, quantizers = find_layer(detector, options.layer) if options.layer else ('', None)
    with Watch(quantizers) if quantizers is not None else contextlib.nullcontext() as watch:
        found: Inspection = inspect(detector, options.image)

    def write(name: str, draw: Callable[..., None], *arguments: Any) -> Path:
        return save_figure(options.out / f'{name}.png', lambda figure: draw(figure, *arguments))

    yield write('window_map', draw_window_map, found.image, found.records, found.depths)
    yield write('scores', draw_scores, found.image, found.records)
    beside, caption = float_beside(cfg, detector, options)
    models = {**beside, 'this model': found.sample.pred_instances}
    classes, picture = tuple(detector.dataset_meta['classes']), read_rgb(options.image)
    yield write('detections', draw_detections, picture, models, classes, options.score_thr, caption)
    if watch is not None:
        yield write('histogram', draw_histogram, layer, watch.seen())
