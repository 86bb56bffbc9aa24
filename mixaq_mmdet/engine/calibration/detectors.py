"""A calibrated detector in memory, and preprocessed images for it: what analyses and searches work on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from ..damaged_images import naming_images
from ..detectors import load_detector
from ..progress import progress
from .calibrator import Calibrator
from .data import calibration_loader, reading_pipeline
from .parts import asks_for_gradients, uncalibrated


def calibrated_detector(
    cfg: Config, checkpoint: str, quant: Mapping[str, Any] | None = None, num_images: int = 32, seed: int = 0
) -> nn.Module:
    """As :func:`load_detector`, calibrated on train images unless the checkpoint already is."""
    model = load_detector(cfg, checkpoint, get_device(), quant=quant)
    if uncalibrated(model):
        annotated = asks_for_gradients(model)
        pipeline = reading_pipeline(cfg, annotated)
        loader: Any = calibration_loader(cfg.train_dataloader, pipeline, num_images, seed)
        calibrator = Calibrator(model, annotated=annotated)
        with naming_images(loader.dataset), progress('calibration', calibrator.steps(len(loader.sampler))) as tick:
            calibrator.tick = tick
            calibrator.run(loader)
    return model


def preprocessed(cfg: Config, model: Any, num_images: int, seed: int = 0) -> tuple[list[dict[str, Any]], list[Any]]:
    """Train images through the test pipeline and the model's preprocessor, one by one, and their ids."""
    loader = calibration_loader(cfg.train_dataloader, reading_pipeline(cfg), num_images, seed)
    with naming_images(loader.dataset):
        images = [model.data_preprocessor(batch, False) for batch in loader]
    return images, [sample['data_samples'][0].metainfo.get('img_id') for sample in images]
