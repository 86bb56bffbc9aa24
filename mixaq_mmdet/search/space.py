"""What is searched: a low (and a prune) ratio for each block pair, in steps of a tenth up to 0.8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

STEPS = 10
LARGEST = 8  # tenths; of low and pruned windows together


@dataclass(frozen=True, order=True)
class Candidate:
    """Ratios in whole tenths, one entry for each block pair."""

    low: tuple[int, ...]
    prune: tuple[int, ...]

    @property
    def low_ratios(self) -> tuple[float, ...]:
        """As ``TwoBranchSwin`` takes them."""
        return tuple(tenths / STEPS for tenths in self.low)

    @property
    def prune_ratios(self) -> tuple[float, ...]:
        """As ``TwoBranchSwin`` takes them."""
        return tuple(tenths / STEPS for tenths in self.prune)

    def __str__(self) -> str:
        low = ' '.join(f'.{tenths}' for tenths in self.low)
        return low if not any(self.prune) else f'{low} | ' + ' '.join(f'.{tenths}' for tenths in self.prune)


Fits = Callable[[Candidate], bool]


@dataclass(frozen=True)
class SearchSpace:
    """All candidates of a backbone.

    Genes are what the algorithms work on: ``pairs`` integers from 0 to 8 (tenths of low windows), and as many again
    for pruning.

    Args:
        pair_stages: stage of every block pair.
        prune: search prune ratios as well.
        fits: whether a candidate is within the budget; None: every one is.
    """

    pair_stages: tuple[int, ...]
    prune: bool = False
    fits: Fits | None = None

    def __post_init__(self) -> None:
        if self.fits is not None and not self.fits(self.cheapest):
            raise ValueError(
                'the budget is below what this search can reach (every ratio at 0.8); raise --budget or '
                '--target-latency' + ('' if self.prune else ', or add --prune')
            )

    @property
    def pairs(self) -> int:
        """Block pairs."""
        return len(self.pair_stages)

    @property
    def genes(self) -> int:
        """Length of a gene vector."""
        return self.pairs * (2 if self.prune else 1)

    @property
    def cheapest(self) -> Candidate:
        """The candidate of least cost."""
        most, none = (LARGEST,) * self.pairs, (0,) * self.pairs
        return Candidate(none, most) if self.prune else Candidate(most, none)

    @property
    def dense(self) -> Candidate:
        """Every window high."""
        return Candidate((0,) * self.pairs, (0,) * self.pairs)

    def encode(self, candidate: Candidate) -> np.ndarray:
        """(genes,) integers."""
        return np.array(candidate.low + (candidate.prune if self.prune else ()))

    def legal(self, genes: Sequence[int] | np.ndarray) -> Candidate:
        """The candidate that genes mean: low windows give way to pruned ones, then ratios rise until the budget holds.

        Which ratios rise is drawn by a generator seeded with the genes, so that the answer depends on nothing else.
        """
        values = [int(min(max(gene, 0), LARGEST)) for gene in genes]
        prune = values[self.pairs :] if self.prune else [0] * self.pairs
        low = [min(tenths, LARGEST - p) for tenths, p in zip(values[: self.pairs], prune, strict=True)]
        candidate = Candidate(tuple(low), tuple(prune))
        if self.fits is None or self.fits(candidate):
            return candidate
        generator = np.random.default_rng(values)
        while not self.fits(candidate):
            candidate = self._cheaper(candidate, generator)
        return candidate

    def _cheaper(self, candidate: Candidate, generator: np.random.Generator) -> Candidate:
        """One ratio of one pair a step up."""
        low, prune = list(candidate.low), list(candidate.prune)
        roomy = [pair for pair in range(self.pairs) if low[pair] + prune[pair] < LARGEST]
        prunable = [pair for pair in range(self.pairs) if self.prune and prune[pair] < LARGEST]
        if prunable and (not roomy or generator.random() < 0.5):
            pair = int(generator.choice(prunable))
            prune[pair] += 1
            low[pair] = min(low[pair], LARGEST - prune[pair])
        else:
            low[int(generator.choice(roomy))] += 1
        return Candidate(tuple(low), tuple(prune))

    def first_population(self, size: int, seed: int) -> list[Candidate]:
        """Different legal candidates: uniform vectors, SparseViT's pattern, then random ones."""
        if size < 2:
            raise ValueError(f'--population {size} is too small; give at least 2')
        seeds = [*self._uniform(), *self._sparse_vit()]
        chosen = list(dict.fromkeys(self.legal(self.encode(candidate)) for candidate in seeds))[:size]
        generator, attempts = np.random.default_rng(seed), 0
        while len(chosen) < size and attempts < 100 * size:
            attempts += 1
            # around a level of its own, so that random vectors reach both ends of the front
            level, width = generator.integers(0, LARGEST + 1), generator.integers(0, LARGEST + 1)
            genes = level + generator.integers(-width, width + 1, self.genes)
            if self.prune:
                genes[self.pairs :] -= LARGEST // 2
            candidate = self.legal(genes)
            if candidate not in chosen:
                chosen.append(candidate)
        return chosen

    def _uniform(self) -> list[Candidate]:
        none = (0,) * self.pairs
        return [Candidate((tenths,) * self.pairs, none) for tenths in range(LARGEST, -1, -1)]

    def _sparse_vit(self) -> list[Candidate]:
        """Stages 1 and 3 give, 2 and 4 keep (SparseViT, arXiv 2303.17605)."""
        none = (0,) * self.pairs
        found = []
        for tenths in (LARGEST, 6, 4):
            pattern = tuple(tenths * (stage % 2 == 0) for stage in self.pair_stages)
            found.append(Candidate(pattern, none))
            if self.prune:
                found.append(Candidate(none, pattern))
        return found
