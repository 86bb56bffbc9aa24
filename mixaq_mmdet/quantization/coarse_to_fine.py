"""Fast progressive combining search (FPCS of AdaLog, ECCV 2024): a grid of candidates, then finer around the best.

A candidate is a step and something else that goes with it: a zero point, or the base of a logarithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .observers import Samples, Simulate

NARROWING = 7.5
SMALLEST_SHARE = 0.9
AT_ONCE = 1 << 21  # values simulated at once
Errors = Callable[[Tensor, Tensor], Tensor]
"""(candidates, rows) steps and (candidates, rows) others to (candidates, rows) errors."""
Merge = Callable[[list[Tensor]], None]
"""Merges errors over ranks in place."""


@dataclass(frozen=True)
class Progressive:
    """The search.

    Args:
        keep: candidates that survive each round.
        expansions: how often steps are tried between the survivors'.
        spread: steps tried around each survivor.
    """

    keep: int = 16
    expansions: int = 5
    spread: int = 8

    def __call__(
        self, errors_of: Errors, scales: Tensor, others: Tensor, width: Tensor, merge: Merge = lambda errors: None
    ) -> tuple[Tensor, Tensor]:
        """The best candidate of each row.

        Args:
            errors_of: candidates.
            scales: (candidates, rows) steps above 0 to begin with.
            others: (candidates, rows) what goes with each.
            width: (rows,) distance of neighbouring steps.
            merge: of errors over ranks.
        """
        errors = _merged(errors_of(scales, others), merge)
        for _ in range(self.expansions):
            kept = errors.argsort(dim=0, stable=True)[: self.keep]
            scales, others, errors = (values.gather(0, kept) for values in (scales, others, errors))
            offsets = torch.linspace(-0.5, 0.5, self.spread).to(width)[:, None, None] * width
            near = (scales + offsets).flatten(0, 1)
            near = torch.where(near > 0, near, scales.repeat(self.spread, 1))
            theirs = others.repeat(self.spread, 1)
            errors = torch.cat([errors, _merged(errors_of(near, theirs), merge)])
            scales, others = torch.cat([scales, near]), torch.cat([others, theirs])
            width = width / NARROWING
        best = errors.argmin(0, keepdim=True)
        return scales.gather(0, best)[0], others.gather(0, best)[0]


def _merged(errors: Tensor, merge: Merge) -> Tensor:
    merge([errors])
    return errors


class ProgressiveRange:
    """The range of least squared error on a uniform grid: zero points, and steps between two shares of the values.

    Zero points are tried ``reach`` to both sides of that of the full range; the published ones lie around the middle,
    which is the same for what is symmetric and far off for what a ReLU gives.

    Args:
        bits: of the grid.
        search: how.
        steps: first steps, linear between those of the inner 90 % of the values and of all of them.
        reach: of the zero points.
    """

    def __init__(self, bits: int, search: Progressive, steps: int = 8, reach: int = 8) -> None:
        self.top = 2**bits - 1
        self.search = search
        self.steps = steps
        self.reach = reach

    def __call__(self, samples: Samples, simulate: Simulate) -> tuple[Tensor, Tensor]:
        scales = first_steps(samples, self.steps) / self.top
        widest = (samples.high.clamp(min=0) - samples.low.clamp(max=0)).clamp(min=torch.finfo(torch.float32).tiny)
        centre = (-samples.low.clamp(max=0) / widest * self.top).round()
        zeros = (centre + torch.arange(-self.reach, self.reach + 1)[:, None]).clamp(0, self.top)
        rows = len(samples.values)
        grid_scales = scales[:, None].expand(-1, len(zeros), rows).flatten(0, 1)
        grid_zeros = zeros[None].expand(len(scales), -1, rows).flatten(0, 1)

        def errors_of(scales: Tensor, zeros: Tensor) -> Tensor:
            most = max(AT_ONCE // samples.values.numel(), 1)
            pairs = zip(scales.split(most), zeros.split(most), strict=True)
            return torch.cat([_simulated_errors(samples, simulate, *self.ends(*pair)) for pair in pairs])

        width = (scales[-1] - scales[0]) / max(self.steps - 1, 1)
        return self.ends(*self.search(errors_of, grid_scales, grid_zeros, width))

    def ends(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the lowest and the highest code."""
        return -zero * scale, (self.top - zero) * scale


def _simulated_errors(samples: Samples, simulate: Simulate, low: Tensor, high: Tensor) -> Tensor:
    """(candidates, rows) squared errors with the ranges low, high (candidates, rows)."""
    times = len(low)
    tiled = Samples(*(part.repeat(times, *[1] * (part.dim() - 1)) for part in vars(samples).values()))
    return tiled.squared_error(simulate(tiled, low.flatten(), high.flatten())).view(low.shape)


def first_steps(samples: Samples, steps: int) -> Tensor:
    """(steps, rows) widths of ranges, linear between the inner 90 % of the values and all of them."""
    tail = (1 - SMALLEST_SHARE) / 2
    inner = samples.quantile(1 - tail) - samples.quantile(tail)
    outer = samples.high.clamp(min=0) - samples.low.clamp(max=0)
    tiny = torch.finfo(torch.float32).tiny * 1e3
    inner, outer = torch.minimum(inner, outer).clamp(min=tiny), outer.clamp(min=tiny)
    return torch.stack([torch.lerp(inner, outer, share) for share in torch.linspace(0, 1, steps).tolist()])
