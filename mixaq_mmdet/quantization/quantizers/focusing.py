"""Dynamic focusing quantizer for attention probabilities (AIQViT, arXiv 2502.04628): a learned interval.

u = (x - b1) / (b2 - b1), q = round((2^b - 1) clip(u, 0, 1)) / (2^b - 1), x^ = b1 + (b2 - b1) q. With rounding passed
straight through, the gradients are dx^/db1 = u - q and dx^/db2 = q - u inside, 1 for b1 below and 1 for b2 above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...registry import QUANTIZERS
from ..observers import Samples
from .base import Quantizer

MASKED = 1e-20
"""Probabilities up to here count as masked and become exactly 0. Swin lowers masked logits by 100: a factor of 4e-44,
which float32 rounds to zero or not depending on the other logits."""
NARROWEST = 1e-4  # of the interval: a step of it must stay far above float32's resolution


@QUANTIZERS.register_module(name='Focusing')
class FocusingQuantizer(Quantizer):
    """Uniform inside [lower, upper], clamped outside, masked probabilities exactly zero; per tensor.

    The ends are buffers: outside a reconstruction nothing trains them.
    """

    reconstructed = True
    lower: Tensor
    upper: Tensor

    def __init__(self, bits: int, per_channel: bool = False, **kwargs: Any) -> None:
        if per_channel:
            raise ValueError(f'{kwargs.get("name", "quantizer")}: a focusing grid is per tensor; drop per_channel')
        super().__init__(bits, **kwargs)
        self.register_buffer('lower', torch.zeros(()))
        self.register_buffer('upper', torch.ones(()))

    def learnable(self) -> list[Tensor]:
        """The two ends."""
        return [self.lower, self.upper]

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the interval inside [0, 1] and its ends apart."""
        self.lower.clamp_(0, 1 - NARROWEST)
        self.upper.copy_(torch.maximum(self.upper, self.lower + NARROWEST).clamp(max=1))

    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        low = low.clamp(min=0)
        high = torch.maximum(high, low + NARROWEST)
        return _Focus.apply(samples.values, low[:, None], high[:, None], 2**self.bits - 1)

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        self.lower.copy_(low)
        self.upper.copy_(high)
        self.settle()

    def _grid(self, x: Tensor, out: Tensor | None) -> Tensor:
        values = _Focus.apply(x, self.lower, self.upper, 2**self.bits - 1)
        return values if out is None else out.copy_(values)

    def describe(self) -> str:
        return f'[{float(self.lower):.4g}, {float(self.upper):.4g}], 0'


class _Focus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: Tensor, upper: Tensor, levels: int) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        width = upper - lower
        position = (wide - lower).div_(width)
        code = position.clamp(0, 1).mul_(levels).round_().div_(levels)
        ctx.save_for_backward(wide, position, code)
        return (code * width).add_(lower).masked_fill_(wide <= MASKED, 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wide, position, code = ctx.saved_tensors
        grad = grad.masked_fill(wide <= MASKED, 0)
        below, above = position < 0, position > 1
        inside = grad.masked_fill(below | above, 0)
        rounding = (inside * (code - position)).sum()
        lower = grad.masked_fill(~below, 0).sum() - rounding
        upper = grad.masked_fill(~above, 0).sum() + rounding
        return inside.to(grad.dtype), lower, upper, None
