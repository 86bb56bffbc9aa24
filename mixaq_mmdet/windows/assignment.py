"""From scores and ratios to high, low and pruned windows, as one permutation."""

from __future__ import annotations

from typing import NamedTuple


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
