"""A search on a made-up landscape: what the algorithms do, without a detector."""

from __future__ import annotations

from pathlib import Path

from mixaq_mmdet.search import nsga, surrogate
from mixaq_mmdet.search.history import History
from mixaq_mmdet.search.space import LARGEST, Candidate, SearchSpace
from mixaq_mmdet.search.study import Study

STAGES = (0, 1, 2, 2, 2, 3)
LOSS = (0.1, 3.0, 0.4, 0.2, 0.3, 2.0)
SUBJECT = {'model': 'landscape'}


def cost(candidate: Candidate) -> dict[str, float]:
    """Relative cost, linear in the ratios."""
    return {'bops': 1 - sum(candidate.low) / 120 - sum(candidate.prune) / 60}


def quality(candidate: Candidate) -> dict[str, float]:
    """AP that falls with the square of each ratio."""
    terms = zip(LOSS, candidate.low, candidate.prune, strict=True)
    return {'map': 45 - sum(loss * (low + 1.7 * prune) ** 2 for loss, low, prune in terms) / 30}


class Killed(BaseException):
    """In the place of a kill -9."""


class Landscape:
    """Counts its evaluations and dies at number ``die_at``."""

    def __init__(self, die_at: int | None = None) -> None:
        self.calls: list[Candidate] = []
        self.die_at = die_at

    def __call__(self, candidate: Candidate) -> dict[str, float]:
        if len(self.calls) == self.die_at:
            raise Killed
        self.calls.append(candidate)
        return quality(candidate)


def run(
    path: Path | None,
    measure: Landscape,
    resume: bool = False,
    algorithm: str = 'nsga',
    budget: float = 0.8,
    generations: int = 5,
    population: int = 8,
    seed: int = 0,
) -> Study:
    """One search; returns its study."""
    space = SearchSpace(STAGES, fits=lambda candidate: cost(candidate)['bops'] <= budget)
    study = Study(('map', 'bops'), measure, cost, History(path, SUBJECT, resume))
    first = space.first_population(population, seed)
    if algorithm == 'nsga':
        nsga.search(space, study.evaluate, first, generations, seed)
    else:
        surrogate.search(space, study.evaluate, lambda c: cost(c)['bops'], first, population * generations, seed)
    return study


def exact_front(budget: float) -> list[tuple[float, float]]:
    """The best quality of every cost within a budget, as (-AP, cost) without pruning: quality adds up over pairs."""
    least = {0: 0.0}
    for loss in LOSS:
        step: dict[int, float] = {}
        for total, found in least.items():
            for low in range(LARGEST + 1):
                step[total + low] = min(step.get(total + low, float('inf')), found + loss * low**2)
        least = step
    return [(found / 30 - 45, 1 - total / 120) for total, found in least.items() if 1 - total / 120 <= budget]
