"""A study: scores candidates once, remembers them, and knows the front."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .history import History, Scores
from .space import Candidate

QUALITIES = {'map': -1, 'proxy': 1}  # sign that makes less better
COSTS = ('bops', 'latency')
Measure = Callable[[Candidate], Scores]


def checked_objectives(text: str) -> tuple[str, str]:
    """'map,bops' as a pair: one quality, one cost."""
    names = tuple(name.strip() for name in text.split(','))
    if len(names) != 2 or names[0] not in QUALITIES or names[1] not in COSTS:
        raise ValueError(
            f'--objectives {text!r} must be a quality and a cost: one of {list(QUALITIES)}, a comma, one of '
            f'{list(COSTS)}'
        )
    return names[0], names[1]


@dataclass
class Study:
    """Every algorithm evaluates through one of these; a candidate is never measured twice.

    Args:
        objectives: (quality, cost), see ``checked_objectives``.
        measure: the expensive scores of a candidate, the quality among them.
        cost: the cheap ones, computed each time they are asked for.
        history: where scores are kept.
        notify: called after each answered candidate.
    """

    objectives: tuple[str, str]
    measure: Measure
    cost: Callable[[Candidate], Scores]
    history: History
    notify: Callable[[Study], None] = lambda study: None
    asked: dict[Candidate, Scores] = field(default_factory=dict)
    measured: int = 0
    seconds: float = 0.0

    def evaluate(self, candidate: Candidate) -> tuple[float, float]:
        """Both objectives, less is better."""
        if candidate not in self.asked:
            self.asked[candidate] = self.scores(candidate)
            self.notify(self)
        return self.values(self.asked[candidate])

    def scores(self, candidate: Candidate) -> Scores:
        """All scores of a candidate, from the history where it has them; not counted among those asked for."""
        known = self.history.scores.get(candidate, {})
        if self.objectives[0] not in known:
            begin = time.perf_counter()
            known = {**known, **self.measure(candidate)}
            seconds = time.perf_counter() - begin
            self.history.add(candidate, known, seconds)
            self.measured += 1
            self.seconds += seconds
        return {**known, **self.cost(candidate)}

    def values(self, scores: Scores) -> tuple[float, float]:
        """Objectives of some scores, less is better."""
        quality, cost = self.objectives
        return QUALITIES[quality] * scores[quality], scores[cost]

    def front(self) -> list[tuple[Candidate, Scores]]:
        """Candidates that no other beats in both objectives, cheapest first; of equals the first one asked for."""
        rows = list(self.asked.items())
        if not rows:
            return []
        points = np.array([self.values(scores) for _, scores in rows])
        keep = non_dominated(points)
        return [rows[index] for index in sorted(keep, key=lambda index: points[index][1])]

    def best(self) -> tuple[Candidate, Scores]:
        """The best quality asked for; the cheaper of equals. Every candidate asked for is within the budget."""
        return min(self.asked.items(), key=lambda row: (self.values(row[1]), row[0]))


def non_dominated(points: np.ndarray | Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points (N, 2) that no other beats, less is better; of equal points the first."""
    points = np.asarray(points, dtype=float)
    order = sorted(range(len(points)), key=lambda index: (points[index][1], points[index][0], index))
    kept, best = [], np.inf
    for index in order:
        if points[index][0] < best:
            kept.append(index)
            best = points[index][0]
    return kept


def hypervolume(points: np.ndarray | Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Area between the front of ``points`` (N, 2) and a reference point, less is better in both."""
    points = np.asarray(points, dtype=float)
    area, ceiling = 0.0, float(reference[0])
    for index in non_dominated(points):
        quality, cost = points[index]
        if cost < reference[1] and quality < ceiling:
            area += (reference[1] - cost) * (ceiling - quality)
            ceiling = quality
    return area
