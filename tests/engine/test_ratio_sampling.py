"""The sampling laws: what is uniform, what is bounded, what never stalls, and what is refused."""

from __future__ import annotations

import re
import time
from collections import Counter
from itertools import product

import numpy as np
import pytest

from mixaq_mmdet.engine.ratio_sampling import RatioSampler, count_vectors, uniform_sum

DRAWS = 4000


def drawn(num_pairs: int, draws: int = DRAWS, **options) -> np.ndarray:
    """(2, draws, num_pairs) low and prune ratios in whole tenths."""
    sampler = RatioSampler(**options)
    ratios = np.array([sampler.draw(num_pairs, update) for update in range(draws)]).swapaxes(0, 1)
    tenths = np.round(ratios * 10)
    assert np.allclose(tenths, ratios * 10)
    return tenths.astype(int)


def misfit(observed: np.ndarray, expected: float) -> float:
    """Chi-square per degree of freedom; 1 where the expectation is right."""
    return float(((observed - expected) ** 2 / expected).sum() / (len(observed) - 1))


@pytest.mark.parametrize('num_pairs', [1, 6, 12])
def test_sums_are_uniform_over_the_whole_range(num_pairs):
    low, prune = drawn(num_pairs)
    assert not prune.any()
    assert low.min() >= 0
    assert low.max() == 8
    sums = np.bincount(low.sum(1), minlength=8 * num_pairs + 1)
    # one in 10^4 at eight degrees of freedom; seeds are fixed, so nothing flickers
    assert misfit(sums, DRAWS / len(sums)) < (4 if num_pairs == 1 else 1.6)


def test_every_vector_of_a_sum_is_equally_likely():
    """Three pairs, three levels: all 27 vectors are listed, and each comes as often as its sum allows."""
    generator = np.random.default_rng(3)
    seen = Counter(tuple(uniform_sum(3, 2, generator)) for _ in range(14000))
    vectors = list(product(range(3), repeat=3))
    of_sum = Counter(map(sum, vectors))
    assert [of_sum[s] for s in range(7)] == list(count_vectors(3, 2)[3])
    expected = np.array([14000 / 7 / of_sum[sum(vector)] for vector in vectors])
    observed = np.array([seen[vector] for vector in vectors])
    assert ((observed - expected) ** 2 / expected).sum() / 26 < 1.8


@pytest.mark.parametrize('num_pairs', [6, 12])
def test_pairs_are_exchangeable_and_the_law_is_symmetric(num_pairs):
    low, _ = drawn(num_pairs)
    means, spread = low.mean(0), low.std() / DRAWS**0.5
    assert np.abs(means - 4).max() < 4.5 * spread
    counts = np.array([np.bincount(pair, minlength=9) for pair in low.T])
    assert np.abs(counts - counts.mean(0)).max() < 5 * counts.mean() ** 0.5
    assert np.abs(counts.sum(0) - counts.sum(0)[::-1]).max() < 6 * (2 * counts.sum(0).max()) ** 0.5


def test_sums_near_the_maximum_cost_no_more_time():
    """Rejection would accept 0.03 % at five sixths of the maximum, and less above; here 24 pairs take their turn."""
    start = time.process_time()
    low, _ = drawn(24, draws=500)
    assert low.sum(1).max() > 0.95 * 24 * 8
    assert time.process_time() - start < 5


def test_independent_sums_pile_up_in_the_middle():
    low, _ = drawn(6, sampling='independent')
    middle = np.mean(np.abs(low.sum(1) - 24) <= 12)
    assert middle > 0.9  # a uniform sum is there half of the time
    assert misfit(np.bincount(low.ravel(), minlength=9), low.size / 9) < 2.5


def test_one_share_of_the_drawn_windows_is_pruned():
    plain, _ = drawn(6)
    low, prune = drawn(6, prune=True)
    assert (low + prune == plain).all()
    share = prune.sum(1) / np.maximum(plain.sum(1), 1)
    busy = plain.sum(1) > 24
    assert np.abs(np.histogram(share[busy], bins=5, range=(0, 1))[0] / busy.sum() - 0.2).max() < 0.05
    # the same share in every pair, but for the rounding to the grid
    assert (np.abs(prune - share[:, None] * plain)[busy] <= 1.01).all()


def test_pruning_only():
    plain, _ = drawn(6, draws=50)
    low, prune = drawn(6, draws=50, prune='only')
    assert not low.any()
    assert (prune == plain).all()


def test_draws_depend_on_seed_and_update_alone():
    sampler = RatioSampler(seed=4)
    assert sampler.draw(6, 17) == RatioSampler(seed=4).draw(6, 17)
    assert len({sampler.draw(6, update) for update in range(20)}) > 15
    assert sampler.draw(6, 17) != RatioSampler(seed=5).draw(6, 17)


def test_fixed_leaves_the_configured_ratios():
    assert RatioSampler(sampling='fixed').draw(6, 0) is None


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'max_ratio': 0.85}, 'max_ratio=0.85 is not a multiple of step=0.1'),
        ({'max_ratio': [0.8] * 6}, 'must be one number'),
        ({'max_ratio': 1.2}, 'max_ratio=1.2'),
        ({'step': 0.125, 'max_ratio': 0.5}, 'step=0.125 must be in whole hundredths'),
        ({'sampling': 'uniform'}, "sampling='uniform' is unknown; use one of"),
        ({'sampling': ['x']}, "sampling=['x'] is unknown; use one of"),
        ({'prune': 'all'}, "prune='all' is unknown"),
        ({'seed': -1}, 'seed=-1'),
    ],
)
def test_user_errors_name_the_field(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RatioSampler(**options)
