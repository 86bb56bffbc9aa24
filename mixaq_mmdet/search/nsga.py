"""NSGA-II (by pymoo) over ratios in whole tenths; a fixed seed and fixed scores give the same run, step by step.

That is why resuming is a replay: what the history knows is answered at once, and the run arrives where it was killed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .space import LARGEST, Candidate, SearchSpace

Evaluate = Callable[[Candidate], tuple[float, float]]
MUTATION = 0.1  # SparseViT's (arXiv 2303.17605); with fewer than ten genes it is one in their number


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    first: list[Candidate],
    generations: int,
    seed: int = 0,
    after_generation: Callable[[int], None] = lambda generation: None,
) -> list[Candidate]:
    """Run NSGA-II and return its last population.

    Args:
        space: what is searched; offspring are made legal by it.
        evaluate: two objectives of a candidate, less is better.
        first: first population; its length is the population's.
        generations: how many, the first population included.
        seed: of selection, crossover and mutation.
        after_generation: called with the number of finished generations.
    """
    if generations < 1:
        raise ValueError(f'--generations {generations} leaves nothing to do; give at least 1')
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.problems.static import StaticProblem
    except ImportError as error:
        raise ValueError("the search needs pymoo; install it with `pip install -e '.[search]'`") from error
    problem: Any = Problem(n_var=space.genes, n_obj=2, xl=0, xu=LARGEST, vtype=int)
    mutation, repair = _operators(space)
    algorithm: Any = NSGA2(
        pop_size=len(first),
        sampling=np.stack([space.encode(candidate) for candidate in first]),
        crossover=UniformCrossover(),
        mutation=mutation,
        repair=repair,
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=('n_gen', generations), seed=seed, verbose=False)
    number = 0
    while algorithm.has_next():
        population = algorithm.ask()
        if population is None or len(population) == 0:  # a small space is exhausted
            break
        values = np.array([evaluate(space.legal(individual.X)) for individual in population], dtype=float)
        algorithm.evaluator.eval(StaticProblem(problem, F=values), population)
        algorithm.tell(infills=population)
        number += 1
        after_generation(number)
    return [space.legal(individual.X) for individual in algorithm.pop]


def _operators(space: SearchSpace) -> tuple[Any, Any]:
    """Mutation (a step of one or two tenths, sometimes any value) and repair, as pymoo takes them."""
    from pymoo.core.mutation import Mutation
    from pymoo.core.repair import Repair

    class Step(Mutation):
        def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:
            X = np.asarray(X, dtype=int)
            steps = random_state.choice([-2, -1, 1, 2], size=X.shape)
            anywhere = random_state.integers(0, LARGEST + 1, size=X.shape)
            moved = np.where(random_state.random(X.shape) < 0.25, anywhere, np.clip(X + steps, 0, LARGEST))
            return np.where(random_state.random(X.shape) < max(MUTATION, 1 / X.shape[1]), moved, X)

    class Legal(Repair):
        def _do(self, problem: Any, X: Any, **kwargs: Any) -> Any:
            return np.stack([space.encode(space.legal(genes)) for genes in X])

    return Step(), Legal()
