"""One image through a detector: what the network saw, what its windows did, what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.apis import inference_detector
from torch import Tensor, nn

from mixaq_mmdet.deploy.parts.bytes import ByteImages
from mixaq_mmdet.engine.damaged_images import check_image_file
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.stage_windows import StageRecord


class Inspection(NamedTuple):
    """What happened to one image.

    Attributes:
        image: (H, W, 3) RGB in [0, 1], as the backbone saw it, padding included.
        records: of each stage; empty for a stock backbone.
        depths: blocks of each stage.
        sample: mmdet's data sample with ``pred_instances`` in the original image's pixels.
    """

    image: np.ndarray
    records: list[StageRecord]
    depths: tuple[int, ...]
    sample: Any


def two_branch(detector: nn.Module) -> TwoBranchSwin:
    """The detector's backbone; a ValueError if its windows are not ranked."""
    backbone = getattr(detector, 'backbone', None)
    if not isinstance(backbone, TwoBranchSwin):
        raise ValueError(
            f"model.backbone.type={type(backbone).__name__!r} ranks no windows; set model.backbone.type='TwoBranchSwin'"
        )
    return backbone


def depths_of(backbone: Any) -> tuple[int, ...]:
    """Blocks of each stage."""
    return tuple(len(stage.blocks) for stage in backbone.stages)


@contextmanager
def seen_images(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the (B, C, H, W) inputs of the backbone."""
    found: list[Tensor] = []
    handle = backbone.register_forward_pre_hook(lambda module, inputs: found.append(_as_floats(inputs[0])))
    try:
        yield found
    finally:
        handle.remove()


def _as_floats(images: Tensor | ByteImages) -> Tensor:
    """What a backbone is given, as a tensor: those of converted detectors take bytes."""
    return images.floats() if isinstance(images, ByteImages) else images.detach()


def as_picture(image: Tensor, preprocessor: Any) -> np.ndarray:
    """A normalised network input (3, H, W) as (H, W, 3) RGB in [0, 1]; padding becomes black."""
    picture, padding = image.float().cpu(), (image == 0).all(dim=0).cpu()
    if getattr(preprocessor, '_enable_normalize', False):
        picture = picture * preprocessor.std.cpu().view(-1, 1, 1) + preprocessor.mean.cpu().view(-1, 1, 1)
    picture = picture.masked_fill(padding, 0)
    if not getattr(preprocessor, '_channel_conversion', False):  # then it is in the order it was read: BGR
        picture = picture.flip(0)
    return (picture / 255).clamp(0, 1).permute(1, 2, 0).numpy()


@torch.no_grad()
def inspect(detector: nn.Module, image: str | Path) -> Inspection:
    """Run one image file through the detector."""
    check_image_file(image, 'image')
    backbone = two_branch(detector)
    with seen_images(backbone) as seen, backbone.record_windows() as records:
        sample = inference_detector(detector, str(image))
    picture = as_picture(seen[0][0], detector.data_preprocessor)
    return Inspection(picture, list(records), depths_of(backbone), sample)
