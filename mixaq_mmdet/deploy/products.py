"""Products of integer codes in plain torch, exact on every machine.

Whole numbers below 2^24 are exact in float32 and below 2^53 in float64, so that a floating-point product of codes is
an integer product as long as its sums stay below.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .layouts import Grid, LinearWeights, ProbabilityGrid

EXACT_IN_FLOAT32 = 2**24


def steps_of(x: Tensor, grid: Grid) -> Tensor:
    """Codes minus zero point: whole numbers in float32, the shape of ``x``."""
    return torch.div(x, grid.scale).round_().clamp_(-grid.zero_point, 2**grid.bits - 1 - grid.zero_point)


def probability_values(x: Tensor, grid: ProbabilityGrid | None) -> tuple[Tensor, float]:
    """Quantized attention probabilities as (numbers, what they are multiples of); ``x`` is overwritten."""
    if grid is None:
        return x, 1.0
    if not grid.steps_per_octave:
        return steps_of(x, Grid(grid.scale, grid.zero_point, grid.bits)), grid.scale
    exponent = x.div_(grid.scale).log2_().mul_(grid.steps_per_octave).round_().clamp_(max=0)
    zero = exponent <= -(2**grid.bits)
    return exponent.mul_(1 / grid.steps_per_octave).exp2_().masked_fill_(zero, 0), grid.scale


class ExactLinear:
    """A linear layer on codes.

    Args:
        weights: the layer.
        widest: bits of its widest input grid.
    """

    def __init__(self, weights: LinearWeights, widest: int) -> None:
        steps = weights.codes.double() - weights.zero_point.double().unsqueeze(1)
        largest = float(steps.abs().sum(1).max()) * (2**widest - 1)
        self.steps = steps.float() if largest < EXACT_IN_FLOAT32 else steps
        self.scale, self.bias = weights.scale, weights.bias

    def __call__(self, steps: Tensor, scale: float) -> Tensor:
        """Map whole numbers (..., K), multiples of ``scale``, to float32 (..., N)."""
        sums = F.linear(steps.to(self.steps.dtype), self.steps).float()
        return torch.addcmul(self.bias, sums, self.scale * scale)
