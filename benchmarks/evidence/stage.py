"""Stages: named groups of experiments with their cost and the claims they serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .experiment import Experiment

TIERS = ('core', 'full')


@dataclass(frozen=True)
class Stage:
    """A piece of evidence that is run at one go.

    Args:
        name: what `--stage` takes.
        title: one line for the list.
        experiments: in the order they run.
        hours: expected compute on two CPU cores, what it starts from included.
        tier: ``core`` (every change of the method is judged by it) or ``full`` (seeds, grids, test splits).
        claims: ids in docs/results/protocol.md; they must stand there before the stage can run.
        topics: pages to render after it.
        rank: stages run by tier, then by rising rank.
    """

    name: str
    title: str
    experiments: Sequence[Experiment]
    hours: float
    tier: str = 'core'
    claims: Sequence[str] = ()
    topics: Sequence[str] = ()
    rank: int = 100

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise ValueError(f'tier={self.tier!r} is unknown; use one of {list(TIERS)}')
        names = [experiment.name for experiment in self.experiments]
        if len(set(names)) != len(names):
            raise ValueError(f'experiments of stage {self.name!r} share a name; every name must be its own')


def ordered(stages: Sequence[Stage]) -> list[Stage]:
    """Core before full, lower rank first; two stages of one name are an error."""
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'stage {name!r} is defined twice; give one of them another name')
    return sorted(stages, key=lambda stage: (TIERS.index(stage.tier), stage.rank, stage.name))


def select(stages: Sequence[Stage], names: Sequence[str] | None = None, tier: str | None = None) -> list[Stage]:
    """The named stages, or all of a tier (``full`` includes ``core``)."""
    known = {stage.name: stage for stage in stages}
    for name in names or ():
        if name not in known:
            raise ValueError(f'--stage {name!r} is unknown; use one of {sorted(known)}')
    if names:
        return ordered([known[name] for name in dict.fromkeys(names)])
    allowed = TIERS if tier in (None, 'full') else (tier,)
    return ordered([stage for stage in stages if stage.tier in allowed])
