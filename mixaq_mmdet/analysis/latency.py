"""Measured latency of a TwoBranchSwin on this device: a table by block, size and tier counts that predicts the whole.

What is timed is what the backbone is. Of a TwoBranchSwin that is the *simulated* float path (fake quantization), where
low windows cost what high ones do and only pruning saves time; of a converted one (``IntegerSwin``) the integer path.
Any other path is timed by passing its own blocks (``block_of``) with the same signature.

Every piece is timed once per round; rounds repeat, each in an order of its own, so that a disturbance hits all pieces
alike. Medians count. With a detector, what lies outside its backbone is timed too, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixaq_mmdet.models.steps import BlockStep, EmbedStep, MergingStep, OutputStep, RankStep, Stream
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.windows.assignment import TierCounts, tier_counts

from .detector_latency import DetectorWork, median_ms
from .timing import alternate

GRID = tuple((low / 10, prune / 10) for low in range(0, 9, 4) for prune in range(0, 9, 4) if low + prune <= 8)
PIECES = ('regular', 'shifted')
PATH = 'simulated'
SCOPES = ('backbone', 'detector')
Key = tuple[int, str, tuple[int, int, int]]


@dataclass(frozen=True)
class Entry:
    """One measured piece: a block at some tier counts, or what a stage does besides its blocks.

    ``piece`` is 'regular' or 'shifted' (a block), 'rank', or, in stage -1, what ratios do not change: 'rest'
    (embedding, merging, output norms) and the parts of a detector.
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
        scope: 'backbone', or 'detector' if the entries hold what lies outside the backbone, too.
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
    scope: str = SCOPES[0]

    def __post_init__(self) -> None:
        self._fits = {(stage, piece): self._fit(stage, piece) for stage in range(len(self.depths)) for piece in PIECES}

    def predict(self, low_ratios: Sequence[float], prune_ratios: Sequence[float]) -> float:
        """Milliseconds of the backbone or detector for one image at these ratios."""
        pairs = sum((depth + 1) // 2 for depth in self.depths)
        if not len(low_ratios) == len(prune_ratios) == pairs:
            raise ValueError(f'low_ratios and prune_ratios must have {pairs} entries, one per block pair')
        total = sum(entry.ms for entry in self.entries if entry.stage < 0)
        first = 0
        for stage, depth in enumerate(self.depths):
            own = range(first, first + (depth + 1) // 2)
            first = own.stop
            if any(low_ratios[pair] or prune_ratios[pair] for pair in own):
                total += sum(entry.ms for entry in self.entries if (entry.stage, entry.piece) == (stage, 'rank'))
            for block in range(depth):
                pair = own[block // 2]
                counts = tier_counts(self.windows[stage], low_ratios[pair], prune_ratios[pair])
                piece = PIECES[block % 2]
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
    detector: Any = None,
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
        detector: that the backbone is of: its other parts are timed, too, and ``vectors`` are for the whole of it.
    """
    if rounds < 1:
        raise ValueError(f'--rounds {rounds} measures nothing; give at least 1')
    device = next(backbone.parameters()).device
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(seed)).to(device)
    works, windows = _pieces(backbone, image, block_of)
    outside = None if detector is None else DetectorWork(detector, image, clock)
    forward = partial(_forward, backbone, image) if outside is None else outside.whole
    wholes = [partial(forward, low, prune) for low, prune in vectors]
    rest = [] if outside is None else [outside.outside]
    times = alternate([*works.values(), *wholes, *rest], rounds, clock, device)
    medians = [median_ms(seconds) for seconds in times]
    entries = [
        Entry(key[0], key[1], (*key[2],), ms=ms, spread=_spread(seconds))
        for key, ms, seconds in zip(works, medians, times, strict=False)
    ]
    checks = [
        Whole(tuple(low), tuple(prune), ms) for (low, prune), ms in zip(vectors, medians[len(works) :], strict=False)
    ]
    parts = {} if outside is None else outside.parts()
    entries += [Entry(-1, name, (0, 0, 0), median_ms(own), _spread(own)) for name, own in parts.items()]
    depths = tuple(len(stage.blocks) for stage in backbone.stages)
    counts = tuple(windows.get(stage, 0) for stage in range(len(depths)))  # 0: behind the last of out_indices
    scope = SCOPES[detector is not None]
    return LatencyTable(shape, depths, counts, entries, path or path_of(backbone), clock, wholes=checks, scope=scope)


def _pieces(
    backbone: TwoBranchSwin, image: Tensor, block_of: Callable[[Any], Callable[..., Any]]
) -> tuple[dict[Key, Callable[[], Any]], dict[int, int]]:
    """What is timed, by stage, piece and tier counts; and the number of windows of each stage."""
    works: dict[Key, Callable[[], Any]] = {}
    windows: dict[int, int] = {}
    stream = backbone.begin(image, rank_all=True)
    for step in backbone.steps():
        if isinstance(step, EmbedStep):
            works[-1, 'rest', (0, 0, 0)] = partial(_begin, step, image)
        elif isinstance(step, RankStep):
            works[step.stage, 'rank', (0, 0, 0)] = partial(step, stream)
        elif isinstance(step, BlockStep) and step.number < len(PIECES):
            works |= _block_works(step, stream, block_of(step.module))
            windows[step.stage] = step.windows(stream).count
        elif isinstance(step, OutputStep):
            works[-1, 'rest', (step.stage, 2, 0)] = partial(step.map, stream)
        elif isinstance(step, MergingStep):
            works[-1, 'rest', (step.stage, 1, 0)] = partial(step, stream)
        if not isinstance(step, BlockStep):  # what a block makes of the tokens does not change what the next ones cost
            stream = step(stream)
    return works, windows


def _block_works(step: BlockStep, stream: Stream, block: Callable[..., Any]) -> dict[Key, Callable[[], Any]]:
    works: dict[Key, Callable[[], Any]] = {}
    windows = step.windows(stream)

    def work(counts: TierCounts) -> None:
        block(stream.x, windows.assign(step.shift, counts))  # the assignment is part of what a ratio costs

    for ratios in GRID:
        counts = tier_counts(windows.count, *ratios)
        works[step.stage, PIECES[step.number], counts] = partial(work, counts)
    return works


def _begin(embed: EmbedStep, image: Tensor) -> None:
    """What a forward does before its first stage."""
    embed(embed.backbone.begin(image))


def _forward(backbone: TwoBranchSwin, image: Tensor, low: Sequence[float], prune: Sequence[float]) -> None:
    """A whole forward: what comes before the stages depends on the ratios, too."""
    with backbone.at_ratios(low, prune):
        backbone(image)


def path_of(backbone: TwoBranchSwin) -> str:
    """What runs the backbone's blocks, in a few words."""
    plan = backbone.plan
    return PATH if plan is None else f'integer ({plan.engine}, high windows {plan.high})'


def _spread(seconds: Sequence[float]) -> float:
    """Distance of the quartiles over the median."""
    low, median, high = np.percentile(seconds, [25, 50, 75])
    return float((high - low) / median) if median else 0.0
