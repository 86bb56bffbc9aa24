"""Learned grids (LSQ, OFQ) as the kernels read them: steps by position in a window, offsets by channel.

Products see grids of step 1: the step of a row multiplies its sums, the offset after rounding is in the addend. Norms
and products that make codes add the offset before rounding; what multiplies the inverse step follows them. The product
that makes values divides them by their steps unless those depend on the position; the attended sums are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..layouts import BlockWeights, BranchGrids, Grid, ProbabilityGrid
from .structures import Learned, Steps

Keep = Callable[[Tensor, str, tuple[int, ...]], int]


def weight_unit(grid: ProbabilityGrid) -> float:
    """What the kernels hold for a probability of ``grid.scale``: see probabilities.h on powers of sqrt 2."""
    return 169 / 128 if grid.steps_per_octave == 2 else 1.0


def learned_branch(keep: Keep, weights: BlockWeights, branch: int) -> Learned:
    """The structure of one branch; ``keep`` holds on to a tensor and gives its address."""
    grids, tokens = weights.grids[branch], weights.bias.shape[-1]
    channels, hidden = weights.fc2.codes.shape
    head = channels // weights.num_heads

    def steps(grid: Grid | ProbabilityGrid | None) -> Steps:
        step = positions(grid, tokens)
        return Steps(*(keep(x.float(), 'steps', (tokens,)) for x in (step, step.reciprocal())))

    def offset(value: Tensor | None, count: int) -> int:
        return keep(torch.zeros(count) if value is None else value.float(), 'offset', (count,))

    roles = {**grids._asdict(), 'v': unit_grid(grids.v) if grids.v.steps is None else grids.v}
    zeros = torch.tensor([float(g.zero_point) for g in qkv_grids(grids)]).repeat_interleave(channels)
    return Learned(
        **{role: steps(grid) for role, grid in roles.items()},
        qkv_zero=keep(zeros, 'qkv_zero', (3 * channels,)),
        q_after=offset(grids.q.after, head),
        v_after=offset(grids.v.after, head),
        v_scale=keep(value_scale(grids.v, head), 'v_scale', (head,)),
        proj_in_before=offset(grids.proj_in.before, channels),
        fc2_in_before=offset(grids.fc2_in.before, hidden),
        **{f'{role}_zero': getattr(grids, role).zero_point for role in ('qkv_in', 'proj_in', 'fc1_in', 'fc2_in')},
        k_zero=grids.k.zero_point,
        v_by_position=grids.v.steps is not None,
    )


def value_scale(grid: Grid, channels: int) -> Tensor:
    """(channels of a head,): what the attended sums of the values are multiplied by; 1 with steps by position."""
    if grid.channel_steps is not None:
        return grid.channel_steps.float()
    return torch.full((channels,), grid.scale)


def positions(grid: Grid | ProbabilityGrid | None, tokens: int) -> Tensor:
    """(tokens,) float64: the step at each position; of logarithmic probabilities the factor of what is held."""
    if grid is None:
        return torch.ones(tokens, dtype=torch.float64)
    unit = weight_unit(grid) if isinstance(grid, ProbabilityGrid) else 1.0
    return torch.full((tokens,), grid.scale / unit, dtype=torch.float64) if grid.steps is None else grid.steps.double()


def qkv_grids(grids: BranchGrids) -> tuple[Grid, Grid, Grid]:
    """Of q, k and v."""
    return grids.q, grids.k, grids.v


def unit_grid(grid: Grid) -> Grid:
    """The grid as products see it."""
    return grid._replace(scale=1.0)


def output_grids(weights: BlockWeights) -> tuple[Tensor, Tensor]:
    """What takes results of qkv to where the inverse step is all that is missing: factor and addend, (2, 3 * C)."""
    channels, heads = weights.proj.codes.shape[0], weights.num_heads
    none = torch.zeros(channels // heads)
    before = [
        torch.cat([(none if grid.before is None else grid.before).repeat(heads) for grid in qkv_grids(grids)])
        for grids in weights.grids
    ]
    inverse = torch.ones(2, 3 * channels, dtype=torch.float64)
    for branch, grids in enumerate(weights.grids):
        inverse[branch, 2 * channels :] /= value_scale(grids.v, channels // heads).double().repeat(heads)
    factor = torch.tensor([weights.scale, 1.0, 1.0], dtype=torch.float64).repeat_interleave(channels)
    return factor * inverse, torch.stack(before).double() * inverse


def pad_codes(weights: BlockWeights, results: Tensor) -> Tensor:
    """q, k and v before the inverse step, (2, 3 * C), to codes before clipping at each position, (2, tokens, 3 * C)."""
    tokens, channels = weights.bias.shape[-1], weights.proj.codes.shape[0]
    found = []
    for grids, result in zip(weights.grids, results, strict=True):
        step = torch.stack([positions(grid, tokens) for grid in qkv_grids(grids)], dim=1)
        if grids.v.steps is None:  # the results are divided by them already
            step[:, 2] = 1
        zero = torch.tensor([float(grid.zero_point) for grid in qkv_grids(grids)])
        codes = (result.view(3, channels) / step.unsqueeze(-1)).round() + zero.view(3, 1)
        found.append(codes.flatten(1))
    return torch.stack(found)
