"""A calibrated detector in memory, and preprocessed images for it: what analyses and searches work on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from .calibration import Calibrator, uncalibrated
from .calibration_data import calibration_loader, reading_pipeline
from .damaged_pictures import naming_pictures
from .progress import progress


def every_window_high(cfg: Config) -> Config:
    """A copy of a config without its low and prune ratios."""
    cfg = copy.deepcopy(cfg)
    for name in ('low_ratios', 'prune_ratios'):
        cfg.model.get('backbone', {}).pop(name, None)
    return cfg


def loaded_detector(cfg: Config, checkpoint: str, quant: Mapping[str, Any] | None = None) -> nn.Module:
    """The detector of a config in eval mode; ``quant`` replaces the backbone's (an empty one makes it float)."""
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if quant is not None:
        cfg.model.backbone.pop('quant', None)
        if quant:
            cfg.model.backbone.quant = dict(quant)
    model = MODELS.build(cfg.model)
    load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(get_device()).eval()


def calibrated_detector(
    cfg: Config, checkpoint: str, quant: Mapping[str, Any] | None = None, num_images: int = 32, seed: int = 0
) -> nn.Module:
    """As :func:`loaded_detector`, calibrated on train images unless the checkpoint already is."""
    model = loaded_detector(cfg, checkpoint, quant)
    if uncalibrated(model):
        loader: Any = calibration_loader(cfg.train_dataloader, reading_pipeline(cfg), num_images, seed)
        calibrator = Calibrator(model)
        with naming_pictures(loader.dataset), progress('calibration', calibrator.steps(len(loader.sampler))) as tick:
            calibrator.tick = tick
            calibrator.run(loader)
    return model


def preprocessed(cfg: Config, model: Any, num_images: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[Any]]:
    """Train images through the test pipeline and the model's preprocessor, one by one, and their ids."""
    loader = calibration_loader(cfg.train_dataloader, reading_pipeline(cfg), num_images, seed)
    with naming_pictures(loader.dataset):
        images = [model.data_preprocessor(batch, False) for batch in loader]
    return images, [sample['data_samples'][0].metainfo.get('img_id') for sample in images]
