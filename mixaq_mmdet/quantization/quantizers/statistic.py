"""StatsQ of OFQ (arXiv 2302.02210): a weight grid that follows from the weight's statistics, with nothing to learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ...registry import QUANTIZERS
from ..functional import distance_to_boundary
from ..observers import Samples, as_rows
from .base import Quantizer, RangeFinder


@QUANTIZERS.register_module(name='Statistic')
class StatisticQuantizer(Quantizer):
    """S = 2 mean|W| per row; W^ = S (round(n clip(W / S, -1, 1 - 1e-6) - 1/2) + 1/2) / n with n = 2^(b-1).

    The gradient passes as it is, nothing of it through S.
    """

    def _grid(self, x: Tensor, out: Tensor | None, slots: Tensor | None = None) -> Tensor:
        values = _Statistic.apply(x, self.axis, 2 ** (self.bits - 1))
        return values if out is None else out.copy_(values)

    def fit(self, samples: Samples, find_range: RangeFinder) -> None:
        """Nothing to fit: the grid follows the weight."""
        self.mark_calibrated()

    @torch.no_grad()
    def values_of(self, samples: Samples) -> Tensor:
        """The rows of samples are the rows of the weight, or all of it as one row."""
        return statistic_values(samples.values, 0, 2 ** (self.bits - 1), samples.counts)

    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        return self.values_of(samples)

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        """Ranges have no say."""

    @torch.no_grad()
    def boundary_distance(self, x: Tensor) -> Tensor:
        levels = 2 ** (self.bits - 1)
        steps = x / statistic_scale(x, self.axis) * levels - 0.5
        return distance_to_boundary(steps, -levels, levels - 1)

    def describe(self) -> str:
        return '2 mean|W|'


def statistic_values(weight: Tensor, axis: int | None, levels: int, counts: Tensor | None = None) -> Tensor:
    """The quantized weight, in float32 (float64 for float64), same shape; ``counts`` weigh the values of rows."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    scale = statistic_scale(wide, axis, counts)
    codes = (wide / scale).clamp_(-1, 1 - 1e-6).mul_(levels).sub_(0.5).round_().add_(0.5)
    return codes.mul_(scale / levels)


def statistic_scale(weight: Tensor, axis: int | None, counts: Tensor | None = None) -> Tensor:
    """S, shaped so that it broadcasts against ``weight``."""
    rows = as_rows(weight, axis)
    mean = rows.abs().mean(1) if counts is None else (rows.abs() * counts).sum(1) / counts.sum(1)
    scale = (2 * mean).clamp(min=torch.finfo(torch.float32).tiny).to(weight.dtype)
    shape = [1] * weight.dim()
    if axis is not None:
        shape[axis] = -1
    return scale.view(shape)


class _Statistic(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, axis: int | None, levels: int) -> Tensor:
        return statistic_values(weight, axis, levels).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None
