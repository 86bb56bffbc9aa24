"""A surrogate: a small model of quality from ratios proposes what is worth a real evaluation.

Each round fits a ridge regression to all scores so far, lets NSGA-II search the *predicted* front (which costs
nothing), and evaluates the points of it that are new and farthest from each other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import nsga
from .space import LARGEST, Candidate, SearchSpace
from .study import non_dominated

INNER_POPULATION, INNER_GENERATIONS = 40, 15
STRENGTHS = np.logspace(-4, 2, 13)


class Ridge:
    """Ridge regression on ratios, their squares and the products of neighbouring pairs; strength by leave-one-out."""

    def __init__(self, genes: np.ndarray, values: np.ndarray) -> None:
        """Fit ``values`` (N,) to ``genes`` (N, G)."""
        raw = self._features(genes)
        self._centre, self._scale = raw.mean(0), raw.std(0) + 1e-9
        inputs, self._mean = (raw - self._centre) / self._scale, float(values.mean())
        left, singular, right = np.linalg.svd(inputs, full_matrices=False)
        target = left.T @ (values - self._mean)
        errors = []
        for strength in STRENGTHS * len(values):
            shrink = singular**2 / (singular**2 + strength)
            residual = values - self._mean - left @ (shrink * target)
            leverage = (left**2 * shrink).sum(1) + 1 / len(values)
            errors.append(np.mean((residual / np.maximum(1 - leverage, 1e-3)) ** 2))
        best = STRENGTHS[int(np.argmin(errors))] * len(values)
        self._weights = right.T @ (singular / (singular**2 + best) * target)
        self.error = float(np.sqrt(min(errors)))

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Predictions (N,) for ``genes`` (N, G)."""
        return self._mean + (self._features(genes) - self._centre) / self._scale @ self._weights

    @staticmethod
    def _features(genes: np.ndarray) -> np.ndarray:
        ratios = np.asarray(genes, dtype=float) / LARGEST
        return np.concatenate([ratios, ratios**2, ratios[:, 1:] * ratios[:, :-1]], axis=1)


def search(
    space: SearchSpace,
    evaluate: nsga.Evaluate,
    cost: Callable[[Candidate], float],
    first: list[Candidate],
    evaluations: int,
    seed: int = 0,
    after_round: Callable[[int], None] = lambda number: None,
) -> list[Candidate]:
    """Evaluate ``first``, then what the surrogate proposes, ``evaluations`` candidates in all; returns them.

    Args:
        space: what is searched.
        evaluate: (quality, cost) of a candidate, less is better.
        cost: the second objective alone, known without an evaluation.
        first: evaluated at once; its length is also that of a round.
        evaluations: how many candidates, the first ones included.
        seed: of the inner searches.
        after_round: called with the number of finished rounds.
    """
    chosen = list(dict.fromkeys(first))[:evaluations]
    values = [evaluate(candidate)[0] for candidate in chosen]
    number, size = 1, max(2, len(first) // 3)
    after_round(number)
    while len(chosen) < evaluations:
        model = Ridge(np.stack([space.encode(candidate) for candidate in chosen]), np.array(values))

        def predicted(candidate: Candidate, model: Ridge = model) -> tuple[float, float]:
            return float(model(space.encode(candidate)[None])[0]), cost(candidate)

        start = space.first_population(INNER_POPULATION, seed + number)
        front = nsga.search(space, predicted, start, INNER_GENERATIONS, seed + number)
        batch = _spread(space, front, chosen, min(size, evaluations - len(chosen)), predicted)
        if not batch:
            batch = [candidate for candidate in start if candidate not in chosen][: evaluations - len(chosen)]
        if not batch:  # a small space is exhausted
            break
        values += [evaluate(candidate)[0] for candidate in batch]
        chosen += batch
        number += 1
        after_round(number)
    return chosen


def _spread(
    space: SearchSpace,
    proposed: list[Candidate],
    known: list[Candidate],
    number: int,
    predicted: Callable[[Candidate], tuple[float, float]],
) -> list[Candidate]:
    """Up to ``number`` new candidates, the predicted front first, each as far as possible from all the others."""
    new = [candidate for candidate in dict.fromkeys(proposed) if candidate not in set(known)]
    if not new:
        return []
    front = [new[index] for index in non_dominated([predicted(candidate) for candidate in new])]
    others = [candidate for candidate in new if candidate not in front]
    taken: list[Candidate] = []
    for pool in (front, others):
        while pool and len(taken) < number:
            have = np.stack([space.encode(candidate) for candidate in [*known, *taken]])
            gaps = [np.abs(have - space.encode(candidate)).sum(1).min() for candidate in pool]
            taken.append(pool.pop(int(np.argmax(gaps))))
    return taken
