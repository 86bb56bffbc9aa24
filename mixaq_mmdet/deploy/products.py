"""Products of integer codes in plain torch, exact on every machine.

Whole numbers below 2^24 are exact in float32 and below 2^53 in float64, so that a floating-point product of codes is
an integer product as long as its sums stay below.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.quantization.adaptive_log import adaptive_codes

from .layouts import Grid, LinearWeights, ProbabilityGrid

EXACT_IN_FLOAT32 = 2**24


def step_of(grid: Grid | ProbabilityGrid, positions: Tensor | None = None) -> float | Tensor:
    """The step, or (rows, 1) steps: of all tokens of a window in order, or of tokens at ``positions`` (rows,).

    With steps by channel (channels,).
    """
    if isinstance(grid, Grid) and grid.channel_steps is not None:
        return grid.channel_steps
    if grid.steps is None:
        return grid.scale
    return (grid.steps if positions is None else grid.steps[positions]).unsqueeze(1)


def steps_of(x: Tensor, grid: Grid, positions: Tensor | None = None) -> Tensor:
    """Codes minus zero point: whole numbers in float32, the shape of ``x`` (..., rows, channels).

    On a logarithmic grid the levels of the codes: whole numbers over powers of two.
    """
    shifted = x if grid.before is None else x + grid.before
    if grid.levels is not None:
        return levels_of(shifted, grid)
    steps = torch.div(shifted, step_of(grid, positions)).round_()
    return steps.clamp_(-grid.zero_point, 2**grid.bits - 1 - grid.zero_point)


def levels_of(x: Tensor, grid: Grid | ProbabilityGrid) -> Tensor:
    """The levels that ``x`` takes on a logarithmic grid of an adaptive base; times its scale they are the values."""
    assert grid.levels is not None
    codes = adaptive_codes(x, torch.tensor(grid.scale), torch.tensor(grid.base), grid.bits)
    return grid.levels.index_select(0, codes.flatten()).view(codes.shape)


def probability_values(x: Tensor, grid: ProbabilityGrid | None) -> tuple[Tensor, float | Tensor]:
    """Quantized attention probabilities as (numbers, what they are multiples of); ``x`` is overwritten."""
    if grid is None:
        return x, 1.0
    if grid.levels is not None:
        return levels_of(x, grid), grid.scale
    if not grid.steps_per_octave:
        return steps_of(x, Grid(grid.scale, grid.zero_point, grid.bits, grid.steps)), step_of(grid)
    exponent = x.div_(grid.scale).log2_().mul_(grid.steps_per_octave).round_().clamp_(max=0)
    zero = exponent <= -(2**grid.bits)
    return exponent.mul_(1 / grid.steps_per_octave).exp2_().masked_fill_(zero, 0), grid.scale


def bias_on(weights: LinearWeights, grid: Grid) -> Tensor:
    """The bias of a layer with what the offset of its inputs adds, W^ after: (N,) float64."""
    bias = weights.bias.double()
    if grid.after is None:
        return bias
    steps = weights.codes.double() - weights.zero_point.double().unsqueeze(1)
    return bias + (steps @ grid.after.double()) * weights.scale


class ExactLinear:
    """A linear layer on codes.

    Args:
        weights: the layer.
        grids: of its input, in each branch.
    """

    def __init__(self, weights: LinearWeights, grids: Sequence[Grid]) -> None:
        steps = weights.codes.double() - weights.zero_point.double().unsqueeze(1)
        largest = float(steps.abs().sum(1).max()) * (2 ** max(grid.bits for grid in grids) - 1)
        self.steps = steps.float() if largest < EXACT_IN_FLOAT32 else steps
        self.scale = weights.scale
        self.biases = [bias_on(weights, grid).float() for grid in grids]

    def __call__(self, steps: Tensor, grid: Grid, positions: Tensor | None = None, branch: int = 0) -> Tensor:
        """Map whole numbers (..., K), multiples of the grid's step, to float32 (..., N)."""
        sums = F.linear(steps.to(self.steps.dtype), self.steps).float()
        step = step_of(grid, positions)
        if isinstance(step, Tensor):
            return torch.addcmul(self.biases[branch], sums.mul_(step), self.scale)
        return torch.addcmul(self.biases[branch], sums, self.scale * step)
