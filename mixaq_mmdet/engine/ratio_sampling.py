"""Which ratios a training step uses: the sampling laws of sparsity-aware adaptation (SAQA, arXiv 2507.19131).

Ratios lie on a grid: whole numbers of steps from 0 to ``max_ratio``. The paper's *uniform-sum* law draws the sum of
all pairs' ratios uniformly, then a vector of that sum. On the grid [open, ours] the law is exact rather than rounded:
every possible sum is equally likely, and so is every grid vector of that sum - the grid's own version of a
Dirichlet(1, .., 1) that rejects values above ``max_ratio``. Vectors are counted, not rejected, so no sum stalls, and
like the continuous law this one is exchangeable and symmetric under ``r -> max_ratio - r``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from numbers import Real

import numpy as np

from mixaq_mmdet.checks import check_count
from mixaq_mmdet.windows.assignment import hundredths

Levels = list[int]
RatioPair = tuple[tuple[float, ...], tuple[float, ...]]


@lru_cache(maxsize=16)
def count_vectors(num_pairs: int, top: int) -> tuple[tuple[int, ...], ...]:
    """``counts[n][s]``: how many vectors of ``n`` levels in 0 .. ``top`` have the sum ``s``."""
    counts: list[tuple[int, ...]] = [(1,)]
    for pairs in range(1, num_pairs + 1):
        prefix = [0, *accumulate(counts[-1])]
        last = len(prefix) - 1
        counts.append(tuple(prefix[min(s, last - 1) + 1] - prefix[max(s - top, 0)] for s in range(pairs * top + 1)))
    return tuple(counts)


def uniform_sum(num_pairs: int, top: int, generator: np.random.Generator) -> Levels:
    """Levels in 0 .. ``top``: a uniform sum, then a uniform vector of that sum."""
    counts = count_vectors(num_pairs, top)
    rest = int(generator.integers(num_pairs * top, endpoint=True))
    levels = []
    for pairs in range(num_pairs - 1, -1, -1):
        # vectors of the remaining pairs, for each level that this pair may take
        ways = [counts[pairs][rest - level] if 0 <= rest - level <= pairs * top else 0 for level in range(top + 1)]
        level = _weighted(ways, generator)
        levels.append(level)
        rest -= level
    return levels


def independent(num_pairs: int, top: int, generator: np.random.Generator) -> Levels:
    """Every pair's level uniform on its own: the sum piles up in the middle. For ablation."""
    return generator.integers(top, size=num_pairs, endpoint=True).tolist()


def _weighted(weights: Sequence[int], generator: np.random.Generator) -> int:
    total = sum(weights)
    target, passed = generator.random(), 0
    for index, weight in enumerate(weights):
        passed += weight
        if target < passed / total:
            return index
    raise AssertionError('a random number below 1 exceeded the sum of all weights')


FIXED = 'fixed'
LAWS: dict[str, Callable[[int, int, np.random.Generator], Levels]] = {
    'uniform_sum': uniform_sum,
    'independent': independent,
}
PRUNE_MODES = (False, True, 'only')


class RatioSampler:
    """Low and prune ratios for each optimizer update, a function of (seed, update) alone: every rank draws the same.

    Args:
        max_ratio: largest ratio of a pair, at most 1; a multiple of ``step``.
        step: of the grid, in whole hundredths.
        sampling: 'uniform_sum'; 'independent'; 'fixed' (nothing is sampled, the configured ratios hold).
        seed: of the draws.
        prune: what happens to the drawn windows. False: all run low. True: a share of them, t ~ U(0, 1) drawn once per
            update, is pruned and the rest runs low, both on the grid [open, ours]. 'only': all are pruned (SparseViT).
    """

    def __init__(
        self,
        max_ratio: float = 0.8,
        step: float = 0.1,
        sampling: str = 'uniform_sum',
        seed: int = 0,
        prune: bool | str = False,
    ) -> None:
        if sampling not in [*LAWS, FIXED]:
            raise ValueError(f'sampling={sampling!r} is unknown; use one of {[*LAWS, FIXED]}')
        if prune not in PRUNE_MODES:
            raise ValueError(f'prune={prune!r} is unknown; use one of {list(PRUNE_MODES)}')
        self.top, self.step = _grid(max_ratio, step)
        self.sampling, self.seed, self.prune = sampling, check_count(seed, 'seed'), prune

    def draw(self, num_pairs: int, update: int) -> RatioPair | None:
        """(low ratios, prune ratios) of optimizer update number ``update``; None where the configured ones hold."""
        if self.sampling == FIXED:
            return None
        generator = np.random.default_rng([self.seed, update])
        levels = LAWS[self.sampling](num_pairs, self.top, generator)
        share = {False: 0.0, 'only': 1.0}.get(self.prune)
        if share is None:
            share = generator.random()
        pruned = [int(share * level + 0.5) for level in levels]
        low = [level - skipped for level, skipped in zip(levels, pruned, strict=True)]
        return self._ratios(low), self._ratios(pruned)

    def _ratios(self, levels: Levels) -> tuple[float, ...]:
        return tuple(level * self.step / 100 for level in levels)


def _grid(max_ratio: float, step: float) -> tuple[int, int]:
    """The number of steps in ``max_ratio``, and the step in hundredths."""
    for field, value in (('max_ratio', max_ratio), ('step', step)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
            raise ValueError(f'{field}={value!r} must be one number in (0, 1], for all block pairs')
        if abs(100 * value - hundredths(value)) > 1e-6:
            raise ValueError(f'{field}={value!r} must be in whole hundredths; windows are counted with that precision')
    if hundredths(max_ratio) % hundredths(step):
        raise ValueError(f'max_ratio={max_ratio} is not a multiple of step={step}; try max_ratio=0.8, step=0.1')
    return hundredths(max_ratio) // hundredths(step), hundredths(step)
