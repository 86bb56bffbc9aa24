"""The windows of one stage in one forward: ranked once, counted once, assigned to branches for every block."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixaq_mmdet.windows.assignment import Assignment, TierCounts, assign, tier_counts
from mixaq_mmdet.windows.geometry import WindowGrid, num_windows, window_grid
from mixaq_mmdet.windows.static import StaticLayout, StaticRun, place_windows, static_layout

from .static_form import cached_constants

# Sizes: 16 input sizes, 4 stages, with and without shift. Multi-scale training meets many more.
CACHED_GRIDS = 16 * 4 * 2
# Of grids whose windows all run alike: a forward at one input size needs two for each stage.
CACHED_ASSIGNMENTS = 4 * 2 * 2

Size = tuple[int, int]
GridKey = tuple[int, int, int, int, torch.device]


@cached_constants(CACHED_GRIDS)
def cached_grid(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowGrid:
    """The window grid of a map, on a device."""
    return window_grid(height, width, window, shift, device)


@cached_constants(CACHED_ASSIGNMENTS)
def unranked_assignment(grid_key: GridKey, counts: TierCounts, batch: int, windows_per_run: int | None) -> Assignment:
    """The assignment where one branch has all windows, in the order of the grid."""
    return assign(None, counts, cached_grid(*grid_key), batch, windows_per_run)


@cached_constants(CACHED_GRIDS)
def cached_layout(grid_key: GridKey, counts: TierCounts, batch: int) -> StaticLayout:
    """What of a static layout depends on sizes and ratios alone."""
    return static_layout(cached_grid(*grid_key), counts, batch)


@cached_constants(CACHED_ASSIGNMENTS)
def unranked_run(grid_key: GridKey, counts: TierCounts, batch: int) -> StaticRun:
    """As :func:`unranked_assignment`, in a static layout."""
    return place_windows(None, cached_layout(grid_key, counts, batch))


class StageInput(NamedTuple):
    """What a stage is told besides the residual stream.

    Attributes:
        ratios: (low, prune) for each block pair.
        content: (B, H, W), 0 where a token sees only batch padding; None if nothing has to be ranked.
        image_keys: see ``Importance.token_map``; None unless the importance needs them.
        static: lay windows out so that no shape depends on scores.
    """

    ratios: tuple[tuple[float, float], ...]
    content: Tensor | None = None
    image_keys: list[int] | None = None
    static: bool = False


class Ranking(NamedTuple):
    """The windows of one grid, ranked for each image.

    Attributes:
        scores: (B, windows) importance, larger is more important.
        blank: (B, windows) True where a window holds nothing but padding; these come last.
        order: (B, windows) most important first.
    """

    scores: Tensor
    blank: Tensor
    order: Tensor


class StageRecord(NamedTuple):
    """What one stage did with its windows; tensors are detached.

    Attributes:
        stage: index of the stage.
        size: (height, width) of the map in tokens.
        window_size: side of a window in tokens.
        regular: ranking of the windows of even blocks.
        shifted: ranking of the windows of odd blocks, rolled by ``window_size // 2``.
        counts: high, low and pruned windows per image, for each block pair.
    """

    stage: int
    size: Size
    window_size: int
    regular: Ranking
    shifted: Ranking
    counts: tuple[TierCounts, ...]


class StageWindows:
    """Which windows of a stage run where.

    Args:
        stage: the TwoBranchStage; it cuts and orders windows.
        size: (H, W) of the stage's map in tokens.
        batch: images B.
        device: of the stream.
        ratios: (low, prune) for each block pair.
        rankings: by shift; empty if nothing has to be ranked.
        static: give blocks their windows in a static layout.

    Attributes:
        count: windows of one image.
        counts: high, low and pruned windows of one image, for each block pair.
    """

    def __init__(
        self,
        stage: Any,
        size: Size,
        batch: int,
        device: torch.device,
        ratios: tuple[tuple[float, float], ...],
        rankings: dict[int, Ranking],
        static: bool = False,
    ) -> None:
        self.stage = stage
        self.size = size
        self.rankings = rankings
        self.count = num_windows(*size, stage.window_size)
        self.counts = tuple(tier_counts(self.count, low, prune) for low, prune in ratios)
        self.static = static
        self._batch = batch
        self._device = device
        self._chosen: dict[tuple[int, TierCounts], Assignment | StaticRun] = {}

    def of_block(self, number: int) -> Assignment | StaticRun:
        """The assignment of a block at the ratios of its pair; blocks with the same one share it."""
        shift, counts = self.stage.blocks[number].shape.shift, self.counts[number // 2]
        if counts.high == self.count:
            return self.assign(shift, counts)
        if (shift, counts) not in self._chosen:
            self._chosen[shift, counts] = self.assign(shift, counts)
        return self._chosen[shift, counts]

    def _place(self, shift: int, counts: TierCounts) -> StaticRun:
        """As :meth:`_assign`, in a static layout."""
        key = (*self.size, self.stage.window_size, shift, self._device)
        if counts.low or counts.pruned:
            return place_windows(self.rankings[shift].order, cached_layout(key, counts, self._batch))
        return unranked_run(key, counts, self._batch)

    def assign(self, shift: int, counts: TierCounts) -> Assignment | StaticRun:
        """A new assignment of the windows of one grid, whatever the ratios of the stage."""
        return self._place(shift, counts) if self.static else self._assign(shift, counts)

    def _assign(self, shift: int, counts: TierCounts) -> Assignment:
        if counts.low or counts.pruned:
            return self.stage.choose(self.rankings[shift].order, counts, self.size, shift)
        key = (*self.size, self.stage.window_size, shift, self._device)
        return unranked_assignment(key, counts, self._batch, self.stage.windows_per_run(self._device))

    def all_high(self, shift: int) -> Assignment:
        """All windows in the high branch, never in a static layout: observers see no padding."""
        return self._assign(shift, TierCounts(self.count, 0, 0))

    def lowest_half(self, shift: int) -> Assignment:
        """The lowest half of the ranking in the low branch, the rest nowhere: what the low branch is calibrated on."""
        lowest = (self.count + 1) // 2
        # the lowest to the front, where kept windows are taken
        order = self.rankings[shift].order.roll(lowest, dims=1)
        return self.stage.choose(order, TierCounts(0, lowest, self.count - lowest), self.size, shift)

    def record(self) -> StageRecord:
        """What a ranked stage did, for whoever watches."""
        window = self.stage.window_size
        regular, shifted = self.rankings[0], self.rankings[window // 2]
        return StageRecord(self.stage.index, self.size, window, regular, shifted, self.counts)
