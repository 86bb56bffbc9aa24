"""The closed forms of ERQ (ICML 2024): ridge regression against activation error, weights rounded half by half.

Both need of a layer's inputs nothing but second moments, which add up over images and ranks. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_RIDGE = 1e-10  # of the largest mean square


class InputMoments:
    """Sums over the tokens that one branch of a layer reads: quantized inputs xq and float ones x, a one appended.

    Attributes:
        gram: (features + 1, features + 1) of [xq, 1]^T [xq, 1].
        cross: (features + 1, features) of [xq, 1]^T (x - xq).
        tokens: 0-d, how many.
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.gram = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)
        self.cross = torch.zeros(features + 1, features, dtype=torch.float64, device=device)
        self.tokens = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, quantized: Tensor, original: Tensor) -> None:
        """Add tokens, both (tokens, features); none count as nothing."""
        quantized, original = quantized.double(), original.double()
        ones = torch.cat([quantized, quantized.new_ones(len(quantized), 1)], dim=1).t()
        self.gram += ones @ ones.t()
        self.cross += ones @ (original - quantized)
        self.tokens += len(quantized)

    def sums(self) -> list[Tensor]:
        """What ranks must reduce in place; a factor common to all of them changes nothing."""
        return [self.gram, self.cross, self.tokens]


def mean_moments(branches: Mapping[str, InputMoments], low_share: float) -> tuple[Tensor, Tensor]:
    """Mean gram and cross over the tokens of a layer in which ``low_share`` of the windows are low.

    A branch that saw nothing, and the low one where a layer has none, leaves its share to the other.
    """
    shares = {'high': 1 - low_share, 'low': low_share}
    seen = {name: moments for name, moments in branches.items() if shares[name] > 0 and float(moments.tokens) > 0}
    if not seen:
        seen, shares = {'high': branches['high']}, {'high': 1.0}
    total = sum(shares[name] for name in seen)
    weights = {name: shares[name] / total / moments.tokens.clamp(min=1e-9) for name, moments in seen.items()}
    gram = torch.stack([weights[name] * moments.gram for name, moments in seen.items()]).sum(0)
    cross = torch.stack([weights[name] * moments.cross for name, moments in seen.items()]).sum(0)
    return gram, cross


def solve_ridge(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """(gram + ridge I)^-1 right."""
    # where few tokens span many channels, huge ones would hide the ridge from float64
    ridge = max(ridge, SMALLEST_RIDGE * float(gram.diagonal().max()))
    damped = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky(damped))


def reduce_activation_error(
    weight: Tensor, bias: Tensor, gram: Tensor, cross: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias that bring the output for quantized inputs close to the float one (Aqer).

    Minimises mean |x W^T - [xq, 1] [W + D, b + d]^T + b|^2 + ridge |[D, d]|^2.

    Args:
        weight: (out, features).
        bias: (out,).
        gram: (features + 1, features + 1), mean of [xq, 1]^T [xq, 1].
        cross: (features + 1, features), mean of [xq, 1]^T (x - xq).
        ridge: per token.
    """
    weight, bias = weight.double(), bias.double()
    change = solve_ridge(gram, cross @ weight.t(), ridge).t()
    return weight + change[:, :-1], bias + change[:, -1]


class RowGrid(NamedTuple):
    """The grid of a weight's rows: (code - zero_point) scale, codes 0 .. 2^bits - 1; both (out, 1) float64."""

    scale: Tensor
    zero_point: Tensor
    bits: int


def reduce_weight_error(
    weight: Tensor, bias: Tensor, gram: Tensor, grid: RowGrid, ridge: float, refinements: int
) -> tuple[Tensor, Tensor]:
    """Weight on its grid, and bias, with a small output error (Wqer).

    The first half of the columns that are left is rounded, those behind it and the bias answer by ridge regression,
    until no column is left. Arguments as in :func:`reduce_activation_error`.
    """
    solution = torch.cat([weight.double(), bias.double()[:, None]], dim=1)
    columns, start = weight.shape[1], 0
    while start < columns:
        stop = start + (columns - start + 1) // 2
        half, rest = slice(start, stop), slice(stop, None)
        before = solution[:, half].clone()
        solution[:, half] = round_refined(before, gram[half, half], grid, refinements)
        error = solution[:, half] - before
        solution[:, rest] -= solve_ridge(gram[rest, rest], gram[rest, half] @ error.t(), ridge).t()
        start = stop
    return solution[:, :-1], solution[:, -1]


def round_refined(weight: Tensor, moments: Tensor, grid: RowGrid, refinements: int) -> Tensor:
    """Round to the nearest code, then move single weights to their other neighbour while the output error falls.

    In each pass a row moves the weight whose error d grows along the steepest gradient of d^T moments d, if that
    neighbour is the nearer one to d - gradient and the row's d^T moments d does not grow. A row that does not move is
    done.

    Args:
        weight: (out, columns) float64.
        moments: (columns, columns) mean of x^T x: the products of means plus the covariances.
        grid: of the rows.
        refinements: most passes.
    """
    top = 2**grid.bits - 1
    exact = weight / grid.scale + grid.zero_point
    codes = exact.round().clamp(0, top)
    below = exact.floor()
    neighbours = below.clamp(0, top) + (below + 1).clamp(0, top)  # their sum: minus the one it is, the other one
    error = (codes - grid.zero_point) * grid.scale - weight
    gradient = 2 * error @ moments
    rows, curvature = torch.arange(len(weight), device=weight.device), moments.diagonal()
    for _ in range(refinements):
        movable = (gradient.sign() == error.sign()) & (neighbours != 2 * codes)
        place = gradient.abs().masked_fill(~movable, -1).argmax(1)
        other = neighbours[rows, place] - codes[rows, place]
        step = (other - codes[rows, place]) * grid.scale[:, 0]
        slope = gradient[rows, place]
        grows = step * (slope + step * curvature[place]) >= 0
        moves = movable[rows, place] & (slope.abs() >= step.abs() / 2) & ~grows
        if not bool(moves.any()):
            break
        step = step * moves
        codes[rows, place] = torch.where(moves, other, codes[rows, place])
        error[rows, place] += step
        gradient += 2 * step[:, None] * moments[place]
    return (codes - grid.zero_point) * grid.scale
