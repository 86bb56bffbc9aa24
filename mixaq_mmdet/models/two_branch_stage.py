"""One stage of the backbone: ranks the windows once, then tells each block which windows run where."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from mmdet.models.backbones.swin import SwinBlockSequence
from torch import Tensor

from mixaq_mmdet.windows.assignment import Assignment, TierCounts, assign, rank_windows, tier_counts
from mixaq_mmdet.windows.geometry import WindowGrid, num_windows, partition, window_grid
from mixaq_mmdet.windows.importance import Importance

from .fast_layers import FastPatchMerging
from .two_branch_block import TwoBranchSwinBlock

# Sizes: 16 input sizes, 4 stages, with and without shift. Multi-scale training meets many more.
CACHED_GRIDS = 16 * 4 * 2
# Of grids whose windows all run alike: a forward at one input size needs two for each stage.
CACHED_ASSIGNMENTS = 4 * 2 * 2
# A run's FFN hidden values: a few MB stay in a CPU's cache, and smaller products than MIN_RUN_TOKENS rows run slower.
RUN_VALUES = 2**20
MIN_RUN_TOKENS = 1500


GridKey = tuple[int, int, int, int, torch.device]


@lru_cache(maxsize=CACHED_GRIDS)
def cached_grid(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowGrid:
    """The window grid of a map, on a device."""
    with torch.inference_mode(False):  # what is cached in inference must serve training too
        return window_grid(height, width, window, shift, device)


@lru_cache(maxsize=CACHED_ASSIGNMENTS)
def unranked_assignment(grid_key: GridKey, counts: TierCounts, batch: int, windows_per_run: int | None) -> Assignment:
    """The assignment where one branch has all windows, in the order of the grid."""
    with torch.inference_mode(False):
        return assign(None, counts, cached_grid(*grid_key), batch, windows_per_run)


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
    size: tuple[int, int]
    window_size: int
    regular: Ranking
    shifted: Ranking
    counts: tuple[TierCounts, ...]


class StageInput(NamedTuple):
    """What a stage is told besides the residual stream.

    Attributes:
        ratios: (low, prune) for each block pair.
        content: (B, H, W), 0 where a token sees only batch padding; None if nothing has to be ranked.
        image_keys: see ``Importance.token_map``; None unless the importance needs them.
    """

    ratios: tuple[tuple[float, float], ...]
    content: Tensor | None = None
    image_keys: list[int] | None = None


class TwoBranchStage(SwinBlockSequence):
    """A stock stage, converted in place."""

    @classmethod
    def convert(cls, stock: SwinBlockSequence, index: int) -> TwoBranchStage:
        """Turn a stock stage and its blocks into two-branch ones without touching parameters."""
        stock.__class__ = cls
        stock.index = index
        for block in stock.blocks:
            TwoBranchSwinBlock.convert(block)
        if stock.downsample is not None:
            FastPatchMerging.convert(stock.downsample)
        return stock

    @property
    def num_pairs(self) -> int:
        """Pairs of consecutive blocks; an odd last block is its own pair."""
        return (len(self.blocks) + 1) // 2

    def counts(self, hw_shape: tuple[int, int], told: StageInput) -> tuple[TierCounts, ...]:
        """High, low and pruned windows per image, for each block pair."""
        windows = num_windows(*hw_shape, self.window_size)
        return tuple(tier_counts(windows, low, prune) for low, prune in told.ratios)

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        told: StageInput,
        importance: Importance,
        record: list[StageRecord] | None = None,
    ) -> tuple[Tensor, tuple[int, int], Tensor, tuple[int, int]]:
        """Run the stage.

        Args:
            x: (B, H * W, C) residual stream.
            hw_shape: (H, W).
            told: ratios, and what ranking needs.
            importance: how windows are scored.
            record: list that a :class:`StageRecord` is appended to.

        Returns:
            As stock: the input of the next stage with its (H, W), and this stage's output with its (H, W).
        """
        rankings = self.rank(x, hw_shape, told, importance)
        if record is not None:
            record.append(self._record(rankings, hw_shape, told))
        assignments: dict[tuple[int, float, float], Assignment] = {}
        for number, block in enumerate(self.blocks):
            low, prune = told.ratios[number // 2]
            key = (block.attn.shift_size, low, prune)
            if key not in assignments:
                assignments[key] = self._assign(x, hw_shape, rankings, *key)
            x = block(x, assignments[key])
        if self.downsample is None:
            return x, hw_shape, x, hw_shape
        return *self.downsample(x, hw_shape), x, hw_shape

    def _grid(self, hw_shape: tuple[int, int], shift: int, device: torch.device) -> WindowGrid:
        return cached_grid(*hw_shape, self.window_size, shift, device)

    @property
    def window_size(self) -> int:
        """Side of a window in tokens."""
        return self.blocks[0].attn.window_size

    @torch.no_grad()
    def rank(
        self, x: Tensor, hw_shape: tuple[int, int], told: StageInput, importance: Importance
    ) -> dict[int, Ranking]:
        """Rank the windows of both grids, by shift, from one map of the stream entering the stage."""
        if told.content is None:
            return {}
        window = self.window_size
        token_map = importance.token_map(x.view(x.shape[0], *hw_shape, x.shape[-1]), told.image_keys)
        rankings = {}
        for shift in (0, window // 2):
            real = self._grid(hw_shape, shift, x.device).real
            scores = importance(partition(token_map, window, shift), real)
            blank = partition(told.content, window, shift).amax(-1) == 0
            rankings[shift] = Ranking(scores, blank, rank_windows(scores, blank))
        return rankings

    def _assign(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        rankings: dict[int, Ranking],
        shift: int,
        low: float,
        prune: float,
    ) -> Assignment:
        grid = self._grid(hw_shape, shift, x.device)
        counts = tier_counts(len(grid.rows), low, prune)
        if not (counts.low or counts.pruned):
            key = (*hw_shape, self.window_size, shift, x.device)
            return unranked_assignment(key, counts, x.shape[0], self._windows_per_run(x))
        return self._choose(x, hw_shape, rankings[shift].order, shift, counts)

    def _choose(
        self, x: Tensor, hw_shape: tuple[int, int], order: Tensor, shift: int, counts: TierCounts
    ) -> Assignment:
        """The assignment of ranked windows (B, windows)."""
        return assign(order, counts, self._grid(hw_shape, shift, x.device), x.shape[0], self._windows_per_run(x))

    def branch_assignments(
        self, x: Tensor, hw_shape: tuple[int, int], rankings: dict[int, Ranking], shift: int
    ) -> tuple[Assignment, Assignment]:
        """What each branch is calibrated on: all windows in the high one, the lowest half alone in the low one."""
        count = rankings[shift].order.shape[1]
        lowest = (count + 1) // 2
        order = rankings[shift].order.roll(lowest, dims=1)  # the lowest to the front, where kept windows are taken
        counts = TierCounts(0, lowest, count - lowest)
        low = self._choose(x, hw_shape, order, shift, counts)
        return self._assign(x, hw_shape, rankings, shift, 0.0, 0.0), low

    def _windows_per_run(self, x: Tensor) -> int | None:
        """On a CPU without gradients, few enough for a run's intermediate values to stay in the cache."""
        if torch.is_grad_enabled() or x.device.type != 'cpu':
            return None
        tokens = max(RUN_VALUES // self.blocks[0].ffn.feedforward_channels, MIN_RUN_TOKENS)
        return max(tokens // self.window_size**2, 1)

    def _record(self, rankings: dict[int, Ranking], hw_shape: tuple[int, int], told: StageInput) -> StageRecord:
        window = self.window_size
        counts = self.counts(hw_shape, told)
        return StageRecord(self.index, hw_shape, window, rankings[0], rankings[window // 2], counts)
