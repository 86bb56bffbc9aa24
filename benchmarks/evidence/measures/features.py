"""How far the maps of a quantized backbone are from the float one's, on images that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader

from mixaq_mmdet.analysis.inspection import two_branch
from mixaq_mmdet.analysis.study import evaluation_loader
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.models.distillation import relative_error
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin

if TYPE_CHECKING:
    from ..worker import Context


@torch.no_grad()
def feature_errors(
    backbone: TwoBranchSwin, reference: nn.Module, images: Sequence[torch.Tensor], ratio: float
) -> np.ndarray:
    """|output - reference|^2 / |reference|^2 of each image (1, 3, H, W), mean over maps, at one ratio in all pairs."""
    with backbone.at_ratios(low=ratio):
        return np.array([float(relative_error(backbone(image), reference(image))) for image in images])


def network_inputs(detector: nn.Module, loader: DataLoader) -> list[torch.Tensor]:
    """The normalised images of a loader, as the backbone gets them."""
    return [detector.data_preprocessor(batch, False)['inputs'] for batch in loader]


def summary(errors: np.ndarray) -> dict[str, float]:
    """Mean over images and its standard error."""
    return {'mean': float(errors.mean()), 'standard_error': float(errors.std(ddof=1) / len(errors) ** 0.5)}


def error(context: Context) -> dict[str, Any]:
    """Settings: ``images``, ``ratios``, and ``reference``: (config, checkpoint) of the float detector."""
    settings = context.experiment.settings
    config, checkpoint = (context.repository / name for name in settings['reference'])
    detector = load_detector(context.cfg, context.checkpoint)
    reference = load_detector(Config.fromfile(config), checkpoint)
    images = network_inputs(reference, evaluation_loader(context.cfg, limit=settings['images']))
    backbone = two_branch(detector)
    found = {ratio: feature_errors(backbone, reference.backbone, images, ratio) for ratio in settings['ratios']}
    return {
        'images': len(images),
        'extras': {
            'feature_error': {str(ratio): summary(errors) for ratio, errors in found.items()},
            'by_image': {str(ratio): errors.tolist() for ratio, errors in found.items()},
        },
    }
