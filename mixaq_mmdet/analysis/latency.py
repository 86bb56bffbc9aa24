"""Measured latency of a TwoBranchSwin on this device: a table by block, size and tier counts that predicts the whole.

What is timed is what the backbone is. Of a TwoBranchSwin that is the *simulated* float path (fake quantization), where
low windows cost what high ones do and only pruning saves time; of a converted one (``IntegerSwin``) the integer path.
Any other path is timed by passing its own blocks (``block_of``) with the same signature.

Every piece is timed once per round; rounds repeat, each in an order of its own, so that a disturbance hits all pieces
alike. Medians count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixaq_mmdet.models.two_branch_stage import StageInput
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.windows.assignment import TierCounts, tier_counts

from .timing import alternate

GRID = tuple((low / 10, prune / 10) for low in range(0, 9, 4) for prune in range(0, 9, 4) if low + prune <= 8)
PATH = 'simulated'


@dataclass(frozen=True)
class Entry:
    """One measured piece: a block at some tier counts, or what a stage does besides its blocks.

    ``piece`` is 'regular' or 'shifted' (a block), 'rank', or 'rest' (embedding, merging, output norms; stage -1).
    """

    stage: int
    piece: str
    counts: tuple[int, int, int]
    ms: float
    spread: float


@dataclass(frozen=True)
class Whole:
    """A whole forward that was timed among the pieces, at low and prune ratios for each block pair."""

    low: tuple[float, ...]
    prune: tuple[float, ...]
    ms: float


@dataclass
class LatencyTable:
    """What was measured, and predictions from it.

    Attributes:
        shape: input (height, width).
        depths: blocks of each stage.
        windows: windows of each stage.
        entries: measured pieces.
        path: 'simulated', or the name of another path.
        clock: 'wall' or 'cpu' (processor time of this process).
        wholes: what predictions can be checked against; nothing is fitted to them.
    """

    shape: tuple[int, int]
    depths: tuple[int, ...]
    windows: tuple[int, ...]
    entries: list[Entry]
    path: str = PATH
    clock: str = 'wall'
    environment: dict[str, Any] = field(default_factory=dict)
    wholes: list[Whole] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._fits = {
            (stage, piece): self._fit(stage, piece)
            for stage in range(len(self.depths))
            for piece in ('regular', 'shifted')
        }

    def predict(self, low_ratios: Sequence[float], prune_ratios: Sequence[float]) -> float:
        """Milliseconds of the backbone for one image at these ratios."""
        pairs = sum((depth + 1) // 2 for depth in self.depths)
        if not len(low_ratios) == len(prune_ratios) == pairs:
            raise ValueError(f'low_ratios and prune_ratios must have {pairs} entries, one per block pair')
        total = sum(entry.ms for entry in self.entries if entry.piece == 'rest')
        first = 0
        for stage, depth in enumerate(self.depths):
            own = range(first, first + (depth + 1) // 2)
            first = own.stop
            if any(low_ratios[pair] or prune_ratios[pair] for pair in own):
                total += sum(entry.ms for entry in self.entries if (entry.stage, entry.piece) == (stage, 'rank'))
            for block in range(depth):
                pair = own[block // 2]
                counts = tier_counts(self.windows[stage], low_ratios[pair], prune_ratios[pair])
                piece = 'shifted' if block % 2 else 'regular'
                total += float(_features(counts) @ self._fits[stage, piece])
        return total

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LatencyTable:
        """Inverse of ``as_dict``."""
        entries = [Entry(**{**entry, 'counts': tuple(entry['counts'])}) for entry in content['entries']]
        tuples = {name: tuple(content[name]) for name in ('shape', 'depths', 'windows')}
        wholes = [Whole(tuple(whole['low']), tuple(whole['prune']), whole['ms']) for whole in content.get('wholes', ())]
        return cls(**{**content, **tuples, 'entries': entries, 'wholes': wholes})

    def _fit(self, stage: int, piece: str) -> np.ndarray:
        """Least squares: a time per high and per low window, a start, what a second branch and choosing windows add."""
        own = [entry for entry in self.entries if (entry.stage, entry.piece) == (stage, piece)]
        if not own:
            return np.zeros(5)
        inputs = np.stack([_features(TierCounts(*entry.counts)) for entry in own])
        return np.linalg.lstsq(inputs, np.array([entry.ms for entry in own]), rcond=None)[0]


def _features(counts: TierCounts) -> np.ndarray:
    two_branches, chosen = counts.high > 0 and counts.low > 0, counts.low > 0 or counts.pruned > 0
    return np.array([1.0, counts.high, counts.low, float(two_branches), float(chosen)])


@torch.no_grad()
def measure(
    backbone: TwoBranchSwin,
    shape: tuple[int, int],
    rounds: int = 5,
    clock: str = 'wall',
    seed: int = 0,
    block_of: Callable[[Any], Callable[..., Any]] = lambda block: block,
    path: str | None = None,
    vectors: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
) -> LatencyTable:
    """Time every piece of a backbone on one random image.

    Args:
        backbone: in eval mode; calibrated, float or converted.
        shape: input (height, width).
        rounds: timed rounds after one that is not.
        clock: 'wall', or 'cpu' on a machine that others use too.
        seed: of the image.
        block_of: the implementation that runs a block, called with the stream and the assignment.
        path: name of that implementation; by default that of the backbone's own.
        vectors: (low, prune) ratios at which the whole backbone is timed in the same rounds, since a machine's speed
            drifts: for ``LatencyTable.wholes``.
    """
    if rounds < 1:
        raise ValueError(f'--rounds {rounds} measures nothing; give at least 1')
    device = next(backbone.parameters()).device
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed)).to(device)
    works: dict[tuple[int, str, tuple[int, int, int]], Callable[[], Any]] = {}
    none = (0, 0, 0)
    works[-1, 'rest', none] = lambda: _begin(backbone, image)
    told = list(backbone.tell_stages(image, rank_all=True))
    x, hw_shape = backbone.embed(image)
    windows = []
    for index, stage in enumerate(backbone.stages):
        windows.append(_stage_works(works, backbone, stage, index, x, hw_shape, told[index], block_of))
        if index in backbone.out_indices:
            works[-1, 'rest', (index, 2, 0)] = lambda i=index, x=x, hw=hw_shape: backbone.output(i, x, hw)
        if stage.downsample is not None:
            works[-1, 'rest', (index, 1, 0)] = lambda s=stage, x=x, hw=hw_shape: s.downsample(x, hw)
            x, hw_shape = stage.downsample(x, hw_shape)
    wholes = [lambda low=low, prune=prune: _forward(backbone, image, low, prune) for low, prune in vectors]
    times = alternate([*works.values(), *wholes], rounds, clock, device)
    medians = [1000 * statistics.median(seconds) for seconds in times]
    entries = [
        Entry(*key, ms=ms, spread=_spread(seconds)) for key, ms, seconds in zip(works, medians, times, strict=False)
    ]
    checks = [
        Whole(tuple(low), tuple(prune), ms) for (low, prune), ms in zip(vectors, medians[len(works) :], strict=True)
    ]
    depths = tuple(len(stage.blocks) for stage in backbone.stages)
    return LatencyTable(shape, depths, tuple(windows), entries, path or path_of(backbone), clock, wholes=checks)


def _begin(backbone: TwoBranchSwin, image: Tensor) -> None:
    """What a forward does before its first stage."""
    backbone._check_input(image)
    list(backbone.tell_stages(image))
    backbone.embed(image)


def _forward(backbone: TwoBranchSwin, image: Tensor, low: Sequence[float], prune: Sequence[float]) -> None:
    """A whole forward that leaves the ratios as they were: what comes before the stages depends on them."""
    before = backbone.low_ratios, backbone.prune_ratios
    backbone.set_ratios(low, prune)
    try:
        backbone(image)
    finally:
        backbone.set_ratios(*before)


def path_of(backbone: TwoBranchSwin) -> str:
    """What runs the backbone's blocks, in a few words."""
    plan = getattr(backbone, 'plan', None)
    return PATH if plan is None else f'integer ({plan.engine}, high windows {plan.high})'


def _stage_works(
    works: dict[Any, Callable[[], Any]],
    backbone: TwoBranchSwin,
    stage: Any,
    index: int,
    x: Tensor,
    hw_shape: tuple[int, int],
    told: StageInput,
    block_of: Callable[[Any], Callable[..., Any]],
) -> int:
    """Add a stage's pieces; returns its number of windows."""
    rankings = stage.rank(x, hw_shape, told, backbone.importance)
    works[index, 'rank', (0, 0, 0)] = lambda: stage.rank(x, hw_shape, told, backbone.importance)
    count = rankings[0].order.shape[1]
    for block, piece in zip(stage.blocks[:2], ('regular', 'shifted'), strict=False):
        for low, prune in GRID:
            counts = tuple(tier_counts(count, low, prune))

            def work(block: Any = block, low: float = low, prune: float = prune) -> Any:
                # the assignment is part of what a ratio costs
                assignment = stage._assign(x, hw_shape, rankings, block.attn.shift_size, low, prune)
                return block_of(block)(x, assignment)

            works[index, piece, counts] = work
    return count


def _spread(seconds: Sequence[float]) -> float:
    """Distance of the quartiles over the median."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / median) if median else 0.0
