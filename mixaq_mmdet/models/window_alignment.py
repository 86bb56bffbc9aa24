"""Teach a detector trained from scratch what MixA-Q presumes: important windows have large activations.

A small Swin trained from scratch is free to let background tokens grow: every LayerNorm hides their size from the task
loss. The auxiliary loss here asks that within an image the windows with more object area score higher. It is not part
of the paper [open].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models import MaskRCNN
from mmdet.structures import SampleList
from torch import Tensor, nn

from mixaq_mmdet.registry import MODELS
from mixaq_mmdet.windows.geometry import partition, window_grid
from mixaq_mmdet.windows.importance import L2

from .block_shape import shape_of


def ranking_loss(scores: Tensor, coverage: Tensor, margin: float, temperature: float) -> Tensor:
    """Smooth hinge over the pairs of windows of an image, weighted by how much more object one of them holds.

    mean of (c_i - c_j)+ * softplus((margin - (log s_i - log s_j)) / temperature) * temperature

    Args:
        scores: (B, windows) importance, positive.
        coverage: (B, windows) share of object pixels.
        margin: wanted difference of log scores.
        temperature: softness of the hinge.
    """
    log_scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    ahead = (coverage[:, :, None] - coverage[:, None, :]).clamp(min=0)
    gain = log_scores[:, :, None] - log_scores[:, None, :]
    loss = F.softplus((margin - gain) / temperature) * temperature
    return (ahead * loss).sum() / ahead.sum().clamp(min=torch.finfo(scores.dtype).eps)


def object_coverage(data_samples: SampleList, tokens: tuple[int, int], size: Sequence[int], like: Tensor) -> Tensor:
    """(B, H, W, 1) share of object pixels under every token of a stage.

    Args:
        data_samples: with ``gt_instances.masks``.
        tokens: (H, W) of the stage.
        size: (rows, columns) of the network input.
        like: gives the type and the device.
    """
    pixels = like.new_zeros(len(data_samples), 1, *size)
    for image, sample in zip(pixels, data_samples, strict=True):
        masks = sample.gt_instances.masks.to_tensor(torch.bool, like.device)
        image[0, : masks.shape[-2], : masks.shape[-1]] = masks.any(dim=0).to(like.dtype)
    return F.adaptive_avg_pool2d(pixels, tokens).permute(0, 2, 3, 1)


@MODELS.register_module()
class WindowAlignedMaskRCNN(MaskRCNN):
    """Mask R-CNN whose stock Swin also learns to give windows with objects the larger L2 score.

    The parameters are those of ``MaskRCNN``, so a checkpoint moves between the two.

    Args:
        alignment_weight: of the auxiliary loss.
        alignment_margin: wanted difference of log scores.
        alignment_temperature: softness of the hinge, in log scores.
    """

    def __init__(
        self,
        *args: Any,
        alignment_weight: float = 0.5,
        alignment_margin: float = 0.3,
        alignment_temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, value in (('weight', alignment_weight), ('temperature', alignment_temperature)):
            if not value > 0:
                raise ValueError(
                    f'alignment_{name} must be above 0, got {value}; use type=MaskRCNN to train without it'
                )
        self.alignment_weight = alignment_weight
        self.alignment_margin = alignment_margin
        self.alignment_temperature = alignment_temperature
        self.importance = L2()

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """Mask R-CNN's losses and ``loss_alignment``; batch_inputs is (B, 3, rows, columns)."""
        with stage_inputs(self.backbone) as streams:
            losses = super().loss(batch_inputs, batch_data_samples)
        losses['loss_alignment'] = (
            self.alignment_weight
            * torch.stack(
                [self._alignment(stream, batch_data_samples, batch_inputs.shape[-2:]) for stream in streams]
            ).mean()
        )
        return losses

    def _alignment(self, stream: Tensor, data_samples: SampleList, size: Sequence[int]) -> Tensor:
        """Ranking loss of one stage; stream is (B, H, W, C)."""
        window = shape_of(self.backbone.stages[0].blocks[0]).window
        height, width = stream.shape[1:3]
        real = window_grid(height, width, window, 0).real.to(stream.device)
        scores = self.importance(partition(self.importance.token_map(stream), window), real)
        coverage = object_coverage(data_samples, (height, width), size, scores)
        covered = partition(coverage, window).mean(dim=(2, 3))
        return ranking_loss(scores, covered, self.alignment_margin, self.alignment_temperature)


@contextmanager
def stage_inputs(backbone: Any) -> Iterator[list[Tensor]]:
    """While entered, the list receives the (B, H, W, C) residual stream entering each stage of a stock Swin."""
    streams: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, tuple[int, int]]) -> None:
        tokens, (height, width) = inputs[0], inputs[1]
        streams.append(tokens.view(len(tokens), height, width, -1))

    handles = [stage.register_forward_pre_hook(keep) for stage in backbone.stages]
    try:
        yield streams
    finally:
        for handle in handles:
            handle.remove()
