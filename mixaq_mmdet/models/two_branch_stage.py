"""One stage of the backbone: ranks the windows once, then tells each block which windows run where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from mmdet.models.backbones.swin import SwinBlockSequence
from torch import Tensor

from mixaq_mmdet.windows.assignment import Assignment, TierCounts, assign, rank_windows
from mixaq_mmdet.windows.geometry import partition
from mixaq_mmdet.windows.importance import Importance

from . import stage_windows
from .fast_layers import FastPatchMerging
from .stage_windows import Ranking, Size, StageInput, StageWindows
from .two_branch_block import TwoBranchSwinBlock

if TYPE_CHECKING:
    from .steps import Step, Stream

# A run's FFN hidden values: a few MB stay in a CPU's cache, and smaller products than MIN_RUN_TOKENS rows run slower.
RUN_VALUES = 2**20
MIN_RUN_TOKENS = 1500


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

    @property
    def window_size(self) -> int:
        """Side of a window in tokens."""
        return self.blocks[0].shape.window

    def forward(
        self, x: Tensor, hw_shape: Size, stream: Stream, steps: Iterable[Step]
    ) -> tuple[Tensor, Size, Tensor, Size]:
        """Run the stage's blocks and its merging.

        Args:
            x: (B, H * W, C) residual stream.
            hw_shape: (H, W).
            stream: what else travels; the stage's windows are ranked.
            steps: those of the stage that change the residual stream.

        Returns:
            As stock: the input of the next stage with its (H, W), and this stage's output with its (H, W).
        """
        stream = out = stream._replace(x=x, size=hw_shape)
        for step in steps:
            stream = step(stream)
            if step.kind == 'block':
                out = stream
        return stream.x, stream.size, out.x, out.size

    def windows(self, x: Tensor, size: Size, told: StageInput, importance: Importance) -> StageWindows:
        """The windows of a stream (B, H * W, C) that enters the stage, ranked if they have to be."""
        rankings = self.rank(x, size, told, importance)
        return StageWindows(self, size, x.shape[0], x.device, told.ratios, rankings, told.static)

    @torch.no_grad()
    def rank(self, x: Tensor, size: Size, told: StageInput, importance: Importance) -> dict[int, Ranking]:
        """Rank the windows of both grids, by shift, from one map of the stream entering the stage."""
        if told.content is None:
            return {}
        window = self.window_size
        token_map = importance.token_map(x.view(x.shape[0], *size, x.shape[-1]), told.image_keys)
        rankings = {}
        for shift in (0, window // 2):
            real = stage_windows.cached_grid(*size, window, shift, x.device).real
            scores = importance(partition(token_map, window, shift), real)
            blank = partition(told.content, window, shift).amax(-1) == 0
            rankings[shift] = Ranking(scores, blank, rank_windows(scores, blank))
        return rankings

    def choose(self, order: Tensor, counts: TierCounts, size: Size, shift: int) -> Assignment:
        """The assignment of ranked windows (B, windows), most important first."""
        grid = stage_windows.cached_grid(*size, self.window_size, shift, order.device)
        return assign(order, counts, grid, order.shape[0], self.windows_per_run(order.device))

    def windows_per_run(self, device: torch.device) -> int | None:
        """On a CPU without gradients, few enough for a run's intermediate values to stay in the cache."""
        if torch.is_grad_enabled() or device.type != 'cpu':
            return None
        tokens = max(RUN_VALUES // self.blocks[0].shape.hidden, MIN_RUN_TOKENS)
        return max(tokens // self.window_size**2, 1)
