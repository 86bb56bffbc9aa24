"""From scores and ratios to high, low and pruned windows, as one permutation.

Where windows of a kind, and real tokens of a branch, begin and end depends on an image's scores. While a tracer records
(``torch.jit.trace``), such places stay tensors, which slices take as well: as numbers they would be wrong for the next
image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .geometry import NUM_KINDS, WindowGrid


class TierCounts(NamedTuple):
    """How many windows of one image run in each tier."""

    high: int
    low: int
    pruned: int


def hundredths(ratio: float) -> int:
    """A ratio in whole hundredths, the only precision in which windows are counted."""
    return round(100 * ratio)


def tier_counts(num_windows: int, low_ratio: float, prune_ratio: float = 0.0) -> TierCounts:
    """Count windows per tier with integers, cumulatively from the least important end (MixA-Q, arXiv 2507.19131).

    ``n_pruned = n * p // 100`` and ``n_pruned + n_low = n * (p + r) // 100`` with p, r in whole hundredths: a larger
    ratio's set always contains a smaller ratio's, and no window is lost to floating point.

    Args:
        num_windows: windows of the (padded) grid of one image.
        low_ratio: share of windows in the low-bit branch, in [0, 1].
        prune_ratio: share of windows that are skipped, in [0, 1]; the sum of both is at most 1.
    """
    low, pruned = hundredths(low_ratio), hundredths(prune_ratio)
    if low < 0 or pruned < 0 or low + pruned > 100:
        raise ValueError(
            f'low_ratio={low_ratio} and prune_ratio={prune_ratio} must be at least 0 with a sum of at most 1; lower one'
        )
    num_pruned = num_windows * pruned // 100
    num_low = num_windows * (low + pruned) // 100 - num_pruned
    return TierCounts(num_windows - num_low - num_pruned, num_low, num_pruned)


def rank_windows(scores: Tensor, blank: Tensor | None = None) -> Tensor:
    """Order the windows of each image, most important first. The only place where anything is ordered.

    Stable: among equals the lower index comes first. Blank windows (pure padding) come last whatever they score, so
    that an image's result does not depend on its batch mates.

    Args:
        scores: (B, windows), larger is more important.
        blank: (B, windows) bool.

    Returns:
        (B, windows) int64.
    """
    scores = scores.float()
    if blank is not None:
        scores = scores.masked_fill(blank, float('-inf'))
    return torch.sort(scores, dim=1, descending=True, stable=True).indices


Place = Any
"""A number; while a tracer records, and if it depends on scores, a tensor without dimensions that passes for one."""


class Segment(NamedTuple):
    """Windows of a run that share one attention mask (see geometry.window_kinds)."""

    start: Place
    stop: Place
    kind: int


class Run(NamedTuple):
    """Kept windows that are worked on at once: first those of the high branch, then those of the low branch.

    Attributes:
        rows: (T,) row in the flattened (B * H * W) stream of each real token, in window order.
        slots: (T,) place of each real token among the run's windows * tokens; None if no token is padding.
        windows: number of windows.
        high_windows: how many of them, from the front, are in the high branch.
        high_tokens: how many real tokens, from the front, are in the high branch.
        segments: the windows by attention mask.
    """

    rows: Tensor
    slots: Tensor | None
    windows: int
    high_windows: int
    high_tokens: Place
    segments: tuple[Segment, ...]


class Assignment(NamedTuple):
    """Which windows of a batch run in which branch; windows that appear in no run are pruned."""

    counts: TierCounts
    runs: tuple[Run, ...]


def _run_edges(windows: int, windows_per_run: int | None) -> list[int]:
    """Where runs begin and end: equal ones, because a short last run costs a call and hardly fills a product."""
    runs = 1 if windows_per_run is None else max(round(windows / windows_per_run), 1)
    return [windows * number // runs for number in range(runs + 1)]


def assign(
    order: Tensor | None, counts: TierCounts, grid: WindowGrid, batch: int, windows_per_run: int | None = None
) -> Assignment:
    """Split the ranked windows into high, low and pruned.

    Args:
        order: (B, windows) from :func:`rank_windows`; None for the order of the grid.
        counts: windows per tier in each image.
        grid: where the windows lie.
        batch: images B.
        windows_per_run: cut the kept windows into equal runs of about this many; None for one run.
    """
    count, tokens = grid.rows.shape
    traced = order is not None and torch.jit.is_tracing()
    image = torch.arange(batch, device=grid.rows.device).unsqueeze(1)
    if order is None:
        order = torch.arange(count, device=grid.rows.device).expand(batch, -1)
    high = _by_kind(order[:, : counts.high] + image * count, grid)
    low = _by_kind(order[:, counts.high : counts.high + counts.low] + image * count, grid)
    windows = torch.cat((high, low))
    rows = grid.rows[windows % count] + (windows // count * (grid.height * grid.width)).unsqueeze(1)

    num_high, num_kept = len(high), len(windows)
    if not num_kept:
        return Assignment(counts, ())
    if not grid.padded:
        run = Run(rows.flatten(), None, num_kept, num_high, num_high * tokens, ())
    else:
        real = grid.real[windows % count]
        slots = real.flatten().nonzero().squeeze(1)
        (high_tokens,) = _places(real[:num_high].sum().view(1), traced)
        run = Run(rows.flatten()[slots], slots, num_kept, num_high, high_tokens, ())
    run = run._replace(segments=tuple(_segments(high, low, grid, traced)))
    if traced:  # what is traced is never cut
        return Assignment(counts, (run,))
    return Assignment(counts, tuple(cut_run(run, _run_edges(num_kept, windows_per_run), tokens)))


def cut_run(run: Run, edges: Sequence[int], tokens: int) -> Iterator[Run]:
    """The windows between each two ``edges`` of a run, of ``tokens`` tokens each, as runs of their own."""
    places = [edge * tokens for edge in edges]
    if run.slots is None:
        starts = places
    elif [*edges] == [0, run.windows]:
        starts = [0, len(run.slots)]
    else:
        starts = torch.searchsorted(run.slots, torch.tensor(places, device=run.slots.device)).tolist()
    for (first, last), (start, stop) in zip(pairwise(edges), pairwise(starts), strict=True):
        yield Run(
            rows=run.rows[start:stop],
            slots=None if run.slots is None else run.slots[start:stop] - first * tokens,
            windows=last - first,
            high_windows=min(max(run.high_windows - first, 0), last - first),
            high_tokens=min(max(run.high_tokens - start, 0), stop - start),
            segments=tuple(_clip(run.segments, first, last)),
        )


def _by_kind(windows: Tensor, grid: WindowGrid) -> Tensor:
    """Flatten the windows (B, n) of one branch, those with the same attention mask side by side."""
    windows = windows.flatten()
    if not grid.shifted:
        return windows
    kinds = grid.kinds[windows % len(grid.kinds)]
    return windows[rank_windows(-kinds.unsqueeze(0))[0]]


def _places(values: Tensor, traced: bool) -> list[Any]:
    """A few values (n,) as numbers, or as tensors that a tracer can follow."""
    return [*values.unbind()] if traced else values.tolist()


def _segments(high: Tensor, low: Tensor, grid: WindowGrid, traced: bool) -> list[Segment]:
    """Where each attention mask begins and ends among the kept windows."""
    if not grid.shifted:
        return [Segment(0, len(high) + len(low), 0)]
    found = torch.stack([torch.bincount(grid.kinds[w % len(grid.kinds)], minlength=NUM_KINDS) for w in (high, low)])
    stops = _places(found.flatten().cumsum(0), traced)
    kinds = [*range(NUM_KINDS)] * 2
    return [Segment(*place, kind) for place, kind in zip(pairwise([0, *stops]), kinds, strict=True)]


def _clip(segments: Sequence[Segment], first: int, last: int) -> Iterator[Segment]:
    """The parts of the segments between two windows, counted from the first."""
    for start, stop, kind in segments:
        start, stop = max(start, first), min(stop, last)
        if start < stop:
            yield Segment(start - first, stop - first, kind)
