"""Importance of the layers of a detector's backbone: relevance averaged over images, and drawn over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaq_mmdet.engine.progress import watched

from .detector_logits import check_two_stage, matched_logits
from .relevance import Relevance, backbone_relevance


def image_relevance(detector: Any, image: dict[str, Any]) -> Relevance | None:
    """Relevance of one preprocessed image; None if it holds no object.

    Args:
        detector: a float two-stage detector with a TwoBranchSwin backbone, in eval mode.
        image: ``inputs`` (1, C, H, W) and ``data_samples`` with objects.
    """
    with torch.no_grad():
        maps = [x.requires_grad_() for x in detector.backbone(image['inputs'])]
    with torch.enable_grad():
        features = detector.neck(tuple(maps)) if detector.with_neck else tuple(maps)
        explained = matched_logits(detector, features, image['data_samples'])
        if explained is None:
            return None
        gradients = torch.autograd.grad(explained, maps, allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for x, g in zip(maps, gradients, strict=True)]
    return backbone_relevance(detector.backbone, image['inputs'], filled)


def layer_importance(
    detector: nn.Module, images: Sequence[dict[str, Any]]
) -> tuple[dict[str, float], list[Relevance | None]]:
    """Mean relevance per layer, scaled to mean 1 over the layers (our choice), and the relevance of every image."""
    check_two_stage(detector)
    found = [image_relevance(detector, image) for image in watched('importance of layers', images)]
    seen = [one for one in found if one is not None]
    if not seen:
        raise ValueError('none of the images holds an object; use more images')
    mean = {name: sum(one.layers[name] for one in seen) / len(seen) for name in seen[0].layers}
    scale = len(mean) / sum(mean.values())
    return {name: value * scale for name, value in mean.items()}, found


def relevance_picture(image: Tensor, tokens: Tensor, strength: float = 0.65) -> np.ndarray:
    """Relevance as a red veil over the image.

    Args:
        image: (3, H, W) in [0, 255], RGB.
        tokens: (h, w) relevance.
        strength: opacity of the most relevant tokens.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    image, tokens = image.cpu(), tokens.cpu()
    veil = F.interpolate(tokens[None, None].float(), image.shape[1:], mode='bilinear', align_corners=False)[0]
    # few tokens hold most of it: relative to the 99th percentile the rest can be seen, too
    top = torch.quantile(tokens.float().flatten(), 0.99).clamp(min=1e-12)
    veil = (veil / top).clamp(0, 1) * strength
    red = torch.tensor([255.0, 30.0, 30.0]).view(3, 1, 1)
    mixed = image.float() * (1 - veil) + red * veil
    return mixed.clamp(0, 255).byte().permute(1, 2, 0).numpy()


def original_image(detector: Any, inputs: Tensor) -> Tensor:
    """(1, 3, H, W) as the network sees it to (3, H, W) RGB in [0, 255]."""
    preprocessor = detector.data_preprocessor
    mean, std = (getattr(preprocessor, name).cpu() for name in ('mean', 'std'))
    return (inputs[0].cpu() * std + mean).clamp(0, 255)
