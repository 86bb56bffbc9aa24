"""The way through a TwoBranchSwin, step by step: the one order in which everything that walks it goes.

``TwoBranchSwin.begin`` makes the :class:`Stream` of a batch and ``TwoBranchSwin.steps`` yields the steps. Each takes a
stream and returns the next one; an output takes the stream and returns a map. A forward is no more than this::

    stream = backbone.begin(images)
    for step in backbone.steps():
        if isinstance(step, OutputStep):
            maps.append(step.map(stream))
        else:
            stream = step(stream)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mixaq_mmdet.windows.assignment import Assignment

from .stage_windows import Size, StageInput, StageWindows

if TYPE_CHECKING:
    from .two_branch_swin import TwoBranchSwin


class Stream(NamedTuple):
    """What travels from step to step.

    Attributes:
        x: the images (B, in_channels, H, W) before the embedding, then the residual stream (B, H * W, C).
        size: (H, W) of ``x``.
        told: ratios of every stage, and what ranking needs.
        windows: those of the present stage, once its :class:`RankStep` has run.
    """

    x: Tensor
    size: Size
    told: tuple[StageInput, ...]
    windows: StageWindows | None = None


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """One step.

    Attributes:
        backbone: the backbone that is walked.
        path: of ``module`` inside the backbone.
        module: what does the work.
        stage: index of the stage; -1 for the embedding.
        kind: 'embed', 'rank', 'block', 'output' or 'merging'.
        has_layers: whether ``module`` has layers that can be quantized.
    """

    backbone: TwoBranchSwin
    path: str
    module: Any
    stage: int
    kind: ClassVar[str]
    has_layers: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, stream: Stream) -> Stream:
        """The stream after this step."""

    def after(self, stream: Stream, output: Tensor, size: Size) -> Stream:
        """The stream behind this step if its module gives ``output`` (B, H * W, C) of ``size``."""
        return stream._replace(x=output, size=size)

    def by_branch(self, stream: Stream) -> Iterator[Any]:
        """Run the module on what each branch is calibrated on, and yield its output for one branch after the other."""
        raise NotImplementedError(f'{self.path} has no layers to calibrate')

    def worked(self, stream: Stream) -> list[Tensor | None]:
        """Which tokens each output of :meth:`by_branch` was worked on, (B, H * W, 1) bool; None for all of them."""
        return [None]


class EmbedStep(Step):
    """Images to tokens."""

    kind = 'embed'
    has_layers = True

    def __call__(self, stream: Stream) -> Stream:
        """Images to the residual stream."""
        x, size = self.backbone.embed(stream.x)
        return stream._replace(x=x, size=size)

    def after(self, stream: Stream, output: Tensor, size: Size) -> Stream:
        """Positions are added to what the patch embedding gives."""
        return stream._replace(x=self.backbone.add_position(output), size=size)

    def by_branch(self, stream: Stream) -> Iterator[Any]:
        """One output: there are no windows yet."""
        yield self.module(stream.x)


class RankStep(Step):
    """A stage begins: its windows are ranked and counted."""

    kind = 'rank'

    def __call__(self, stream: Stream) -> Stream:
        """The same stream with the windows of this stage."""
        windows = self.module.windows(stream.x, stream.size, stream.told[self.stage], self.backbone.importance)
        return stream._replace(windows=windows)


@dataclass(frozen=True, eq=False)
class BlockStep(Step):
    """One block.

    Attributes:
        number: of the block in its stage.
    """

    number: int
    kind: ClassVar[str] = 'block'
    has_layers: ClassVar[bool] = True

    def __call__(self, stream: Stream) -> Stream:
        """Run the block with the assignment at the ratios of its pair."""
        return stream._replace(x=self.module(stream.x, self.windows(stream).of_block(self.number)))

    @property
    def shift(self) -> int:
        """How far this block's windows are shifted."""
        return self.module.shape.shift

    def windows(self, stream: Stream) -> StageWindows:
        """The windows of the block's stage, which its rank step has put into the stream."""
        assert stream.windows is not None
        return stream.windows

    def all_high(self, stream: Stream) -> Assignment:
        """The assignment in which every window is high."""
        return self.windows(stream).all_high(self.shift)

    def by_branch(self, stream: Stream) -> Iterator[Any]:
        """First all windows in the high branch, then the lowest half of the ranking alone in the low one."""
        yield self.module(stream.x, self.all_high(stream))
        yield self.module(stream.x, self.windows(stream).lowest_half(self.shift))

    def worked(self, stream: Stream) -> list[Tensor | None]:
        """All, then the real tokens of the lowest half of the windows."""
        low = torch.zeros(stream.x.shape[0] * stream.x.shape[1], dtype=torch.bool, device=stream.x.device)
        for run in self.windows(stream).lowest_half(self.shift).runs:
            low[run.rows] = True
        return [None, low.view(*stream.x.shape[:2], 1)]


class OutputStep(Step):
    """A stage's map for the neck; the stream goes on as it was."""

    kind = 'output'

    def __call__(self, stream: Stream) -> Stream:
        """The stream as it was."""
        return stream

    def map(self, stream: Stream) -> Tensor:
        """(B, C, H, W)."""
        return self.backbone.output(self.stage, stream.x, stream.size)


class MergingStep(Step):
    """Patch merging: a stage ends."""

    kind = 'merging'
    has_layers = True

    def __call__(self, stream: Stream) -> Stream:
        """Merge tokens."""
        return self.after(stream, *self.module(stream.x, stream.size))

    def after(self, stream: Stream, output: Tensor, size: Size) -> Stream:
        """The stage's windows are gone."""
        return stream._replace(x=output, size=size, windows=None)

    def by_branch(self, stream: Stream) -> Iterator[Any]:
        """One output: tokens of all windows merge alike."""
        yield self.module(stream.x, stream.size)
