"""What a converted Swin is made of: stock's modules with integer layers, and a place for what an engine does faster.

A part computes by its ``faster`` form where the engine has one, else by its own layers, exactly and slowly. Both are
made from the file; a copy, or a process that a part is sent to, makes them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.layers import PatchEmbed
from torch import Tensor, nn

from mixaq_mmdet.models.block_shape import BlockShape
from mixaq_mmdet.models.fast_layers import FastPatchMerging
from mixaq_mmdet.models.stage_windows import Ranking, StageInput
from mixaq_mmdet.models.two_branch_stage import TwoBranchStage
from mixaq_mmdet.windows.assignment import Assignment, TierCounts
from mixaq_mmdet.windows.importance import L2, Importance

from .backends import Runner, WindowEngine
from .backends.base import EmbedsBytes
from .linear import NO_WEIGHTS, IntegerLinear, IntegerPatches
from .part import Part

Size = tuple[int, int]


class IntegerSwinBlock(Part):
    """A block in its stage: what the stage asks it for, and an engine that runs its windows.

    Args:
        block: the empty two-branch block whose place it takes.
    """

    made = ('engine',)

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.shape: BlockShape = block.shape
        self.engine: Runner | None = None

    def forward(self, x: Tensor, assignment: Assignment) -> Tensor:
        """Run the kept windows, (B, H * W, C) to the same, in place: a stage's stream is nobody else's."""
        if self.engine is None:
            raise ValueError(NO_WEIGHTS)
        batch, length, channels = x.shape
        stream = x.reshape(batch * length, channels)
        for run in assignment.runs:
            self.engine.run(stream, run)
        return stream.view(batch, length, channels)

    def _load_from_state_dict(self, *_: Any) -> None:
        """The backbone reads the file and fills its blocks."""


class IntegerEmbed(Part, PatchEmbed):
    """The patch embedding."""

    faster: Callable[[Tensor], tuple[Tensor, Size]] | None

    @classmethod
    def convert(cls, embed: PatchEmbed) -> IntegerEmbed:
        """Turn a stock embedding into this class, its projection empty."""
        embed.__class__ = cls
        embed.projection = IntegerPatches(embed.projection)
        embed.faster = None
        return embed

    @property
    def takes_bytes(self) -> bool:
        """Whether it embeds ``ByteImages``, too."""
        return isinstance(self.faster, EmbedsBytes)

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        """Images (B, in_channels, H, W) to (B, H' * W', C), and (H', W')."""
        return super().forward(x) if self.faster is None else self.faster(x)


class IntegerMerge(Part, FastPatchMerging):
    """Patch merging."""

    faster: Callable[[Tensor, Size], tuple[Tensor, Size]] | None

    @classmethod
    def convert(cls, stock: Any) -> Any:
        """Turn a layer into this class, its reduction empty."""
        stock.reduction = IntegerLinear()
        stock.faster = None
        if isinstance(stock, FastPatchMerging):
            stock.__class__ = cls
        return stock

    def forward(self, x: Tensor, input_size: Size) -> tuple[Tensor, Size]:
        """Merge 2 x 2 tokens, (B, H * W, C) to (B, H' * W', out_channels), and the new size."""
        return super().forward(x, input_size) if self.faster is None else self.faster(x, input_size)


class IntegerStage(Part, TwoBranchStage):
    """A stage that leaves ranking and choosing to the engine, where it does them."""

    made = ('engine',)
    engine: WindowEngine | None

    @classmethod
    def convert(cls, stage: TwoBranchStage, index: int) -> IntegerStage:
        """Turn a stage into this class with empty blocks."""
        stage.__class__ = cls
        stage.index = index
        stage.engine = None
        stage.blocks = nn.ModuleList(IntegerSwinBlock(block) for block in stage.blocks)
        if stage.downsample is not None:
            IntegerMerge.convert(stage.downsample)
        return stage

    def rank(self, x: Tensor, size: Size, told: StageInput, importance: Importance) -> dict[int, Ranking]:
        """As TwoBranchStage; the paper's score by the engine, others in torch."""
        if self.engine is None or told.content is None or type(importance) is not L2:
            return super().rank(x, size, told, importance)
        tokens = x.view(x.shape[0], *size, x.shape[-1])
        found = self.engine.rank(tokens, told.content, self.window_size, importance.reverse)
        return {shift: Ranking(*values) for shift, values in found.items()}

    def choose(self, order: Tensor, counts: TierCounts, size: Size, shift: int) -> Assignment:
        """The assignment of ranked windows (B, windows), most important first."""
        if self.engine is None:
            return super().choose(order, counts, size, shift)
        return self.engine.assign(order, counts, size, self.window_size, shift)

    def windows_per_run(self, device: torch.device) -> int | None:
        """An engine wants all kept windows at once: it cuts them to fit the cache itself."""
        return super().windows_per_run(device) if self.engine is None else None
