"""Mix-QViT (arXiv 2501.06357): bits per layer, and a channel-wise fold in which no channel sets everyone's step.

The bits of each layer are ``overrides``, as ``tools/search.py --allocate layers`` writes them. The fold is RepQ's, with
the ranges of extreme LayerNorm channels clipped first: in RepQ the common step is the mean over channels, so that a few
wide ones coarsen it for all. The paper leaves the threshold open; ours is mean + 2 standard deviations of the widths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixaq_mmdet.checks import check_number

from ...registry import QUANT_METHODS
from ..observers import Samples
from ..quantizers.base import Quantizer
from .repq import RepQ


@QUANT_METHODS.register_module()
class MixQViT(RepQ):
    """RepQ with the clipped fold; give it the bits of each layer as ``overrides``.

    Args:
        clip_deviations: channels wider than the mean width plus so many standard deviations are clipped to that width.
    """

    allocates_bits = True

    def __init__(self, clip_deviations: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.clip_deviations = check_number(clip_deviations, 'quant.clip_deviations', usual=2)

    def channel_ranges(self, seen: Samples, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        low, high = super().channel_ranges(seen, quantizer)
        return clip_extreme(low, high, seen.quantile(0.5), self.clip_deviations)


def clip_extreme(low: Tensor, high: Tensor, centre: Tensor, deviations: float) -> tuple[Tensor, Tensor]:
    """Narrow the widest ranges to mean + ``deviations`` standard deviations of all widths.

    Both ends move towards the channel's centre in proportion, so that it stays inside. All arguments but the last (C,).
    """
    width = high - low
    limit = width.mean() + deviations * width.std(correction=0)
    centre = centre.clamp(low, high)
    keep = limit / width.clamp(min=torch.finfo(width.dtype).tiny)
    extreme = width > limit
    return (
        torch.where(extreme, centre + (low - centre) * keep, low),
        torch.where(extreme, centre + (high - centre) * keep, high),
    )
