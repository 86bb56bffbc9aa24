"""search/space.py: every candidate is legal and within the budget, and depends on its genes alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixaq_mmdet.search.space import LARGEST, Candidate, SearchSpace

STAGES = (0, 1, 2, 2, 2, 3)


def cheap(candidate: Candidate) -> bool:
    return sum(candidate.low) + 2 * sum(candidate.prune) >= 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 12), min_size=12, max_size=12))
def test_legal_candidates_hold_the_budget_and_are_pure_functions_of_the_genes(genes):
    space = SearchSpace(STAGES, prune=True, fits=cheap)
    candidate = space.legal(genes)
    assert cheap(candidate)
    assert all(low >= 0 <= prune and low + prune <= LARGEST for low, prune in zip(*_parts(candidate), strict=True))
    assert space.legal(genes) == candidate
    assert space.legal(space.encode(candidate)) == candidate


def _parts(candidate: Candidate) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return candidate.low, candidate.prune


def test_first_population_has_uniform_vectors_and_the_pattern_of_sparsevit():
    first = SearchSpace(STAGES, prune=True).first_population(24, seed=0)
    assert len(set(first)) == 24
    none = (0,) * 6
    assert all(Candidate((tenths,) * 6, none) in first for tenths in range(LARGEST + 1))
    assert Candidate(none, (8, 0, 8, 8, 8, 0)) in first
    assert SearchSpace(STAGES, prune=True).first_population(24, seed=0) == first
    assert SearchSpace(STAGES, prune=True).first_population(24, seed=1) != first


def test_unreachable_budget_says_what_to_do():
    with pytest.raises(ValueError, match='add --prune'):
        SearchSpace(STAGES, fits=lambda candidate: False)
    with pytest.raises(ValueError, match='--population 1'):
        SearchSpace(STAGES).first_population(1, seed=0)
