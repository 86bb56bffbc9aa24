"""Intervals against cases whose answer is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
from evidence.intervals import (
    CONTRADICTED,
    HOLDS,
    NOT_RESOLVED,
    Bound,
    Interval,
    bootstrap,
    difference,
    interval_of,
    mean_over_images,
    outcome,
    outcome_on_pool,
    ratio_of_sets,
    score,
    smallest_effect,
    spread_interval,
    student_interval,
)

from mixaq_mmdet.engine.matches import Matches, mean_ap

ALL = np.uint16(2**10 - 1)


def synthetic(images: int, quality: float, seed: int = 0, categories: int = 1, scene: int = 0) -> Matches:
    """A detector that hits each object with a probability that depends on the image (``scene``) and its quality."""
    world = np.random.default_rng([scene, 99])
    objects = world.integers(1, 6, (categories, images)).astype(np.int16)
    ease = world.uniform(-0.2, 0.2, images)
    draw = world.random(int(objects.sum()) * 2)  # shared luck: arms of one scene are paired
    rng = np.random.default_rng([seed, scene])
    counts = objects * 2
    image_of = np.concatenate([np.repeat(np.arange(images), row) for row in counts])
    luck = 0.8 * draw + 0.2 * rng.random(len(draw))
    hit = (luck < quality + ease[image_of]) & (np.arange(len(draw)) % 2 == 0)
    scores = np.where(hit, 0.4, 0.2) + 0.6 * rng.random(len(draw))
    return Matches(
        image_ids=np.arange(images).astype(str),
        categories=np.arange(categories).astype(str),
        objects=objects,
        counts=counts,
        scores=scores.astype(np.float32),
        hits=np.where(hit, ALL, 0).astype(np.uint16),
        ignored=np.zeros(len(draw), np.uint16),
    )


def test_identical_arms_have_no_difference() -> None:
    arm = synthetic(60, 0.6)
    found = difference(arm, arm)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_known_shift_is_found_and_pairing_narrows() -> None:
    better, worse = synthetic(150, 0.7), synthetic(150, 0.5)
    found = difference(better, worse)
    assert found.estimate == pytest.approx(mean_ap(better)[0] - mean_ap(worse)[0])
    assert 0 < found.low < found.estimate < found.high
    unpaired = np.hypot(score(better).standard_error, score(worse).standard_error)
    assert found.standard_error < 0.9 * unpaired


def test_standard_error_falls_with_the_root_of_the_images() -> None:
    ratio = (
        score(synthetic(80, 0.6), samples=400).standard_error / score(synthetic(480, 0.6), samples=400).standard_error
    )
    assert 1.8 < ratio < 3.2


def test_seeds_that_differ_widen_the_interval() -> None:
    images_only = [difference(synthetic(150, 0.65), synthetic(150, 0.6))] * 3
    arms = [synthetic(150, q, seed=s) for s, q in enumerate((0.45, 0.65, 0.85))]
    over_seeds = difference(arms, synthetic(150, 0.6))
    assert over_seeds.seeds == 3
    assert over_seeds.high - over_seeds.low > 2 * (images_only[0].high - images_only[0].low)


def test_equal_seeds_change_nothing() -> None:
    better, worse = synthetic(100, 0.7), synthetic(100, 0.5)
    one, three = difference(better, worse), difference([better] * 3, worse)
    assert (one.low, one.high) == pytest.approx((three.low, three.high))


def test_stretched_seeds_have_the_unbiased_variance() -> None:
    points = np.array([1.0, 2.0, 6.0])
    found = interval_of(points, np.repeat(points[:, None], 20000, axis=1), images=1)
    assert found.standard_error == pytest.approx(points.std(ddof=1) / np.sqrt(3), rel=0.02)


def test_coverage_is_near_its_level() -> None:
    """The truth is the AP difference on a large population that the sampled images come from."""
    population = synthetic(4000, 0.65), synthetic(4000, 0.6)
    truth = mean_ap(population[0])[0] - mean_ap(population[1])[0]
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        keep = np.isin(np.arange(4000), rng.choice(4000, 120, replace=False))
        found = difference(population[0].subset(keep), population[1].subset(keep), samples=150)
        covered.append(found.low <= truth <= found.high)
    assert 0.83 <= np.mean(covered) <= 1


def test_statistic_of_three_arms() -> None:
    arms = {'clean': synthetic(80, 0.7), 'foggy': synthetic(80, 0.4), 'rival': synthetic(80, 0.3)}
    found = bootstrap([arms], lambda clean, foggy, rival: (clean - foggy) / clean - (clean - rival) / clean)
    ap = {name: mean_ap(matches)[0] for name, matches in arms.items()}
    assert found.estimate == pytest.approx((ap['rival'] - ap['foggy']) / ap['clean'])
    assert found.high < 0


def test_resampling_a_validation_set_takes_seconds() -> None:
    """A slow reference needs half a second a resample; 200 of them must not take minutes on a busy machine."""
    arm = synthetic(500, 0.6, categories=12)
    start = time.process_time()
    score(arm, samples=200)
    assert time.process_time() - start < 10


def test_ratio_of_different_sets_is_not_paired() -> None:
    found = ratio_of_sets(synthetic(150, 0.4, scene=1), synthetic(100, 0.7, scene=2))
    expected = mean_ap(synthetic(150, 0.4, scene=1))[0] / mean_ap(synthetic(100, 0.7, scene=2))[0]
    assert found.estimate == pytest.approx(expected)
    assert found.low < found.estimate < found.high < 1


def test_mean_over_images_uses_the_same_resamples() -> None:
    point, draws = mean_over_images(np.array([[1.0, 0.0], [3.0, 1.0]]), samples=500)
    assert point.tolist() == [2.0, 0.5]
    assert set(np.unique(draws[:, 0])) == {1.0, 2.0, 3.0}
    np.testing.assert_allclose(draws[:, 0], 1 + 2 * draws[:, 1])


def test_different_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match='different images'):
        difference(synthetic(10, 0.5), synthetic(11, 0.5))
    with pytest.raises(ValueError, match='2 seeds, control 3'):
        difference([synthetic(10, 0.5)] * 2, [synthetic(10, 0.5)] * 3)


@pytest.mark.parametrize(
    ('low', 'high', 'margin', 'expected'),
    [
        (-0.2, 0.4, '> -0.3', HOLDS),
        (-0.4, 0.4, '> -0.3', NOT_RESOLVED),
        (-2.0, -0.5, '> -0.3', CONTRADICTED),
        (1.0, 4.0, '< 5', HOLDS),
        (6.0, 8.0, '<5', CONTRADICTED),
        (25.0, 30.0, '20 .. 45', HOLDS),
        (18.0, 30.0, '20 .. 45', NOT_RESOLVED),
        (50.0, 60.0, '20..45', CONTRADICTED),
    ],
)
def test_outcomes(low: float, high: float, margin: str, expected: str) -> None:
    interval = Interval((low + high) / 2, low, high, 0.1, 10, 1)
    assert outcome(interval, Bound.parse(margin)) == expected


def test_unreadable_margin_is_named() -> None:
    with pytest.raises(ValueError, match='margin='):
        Bound.parse('about 0')


def test_pool_needs_no_contradicted_part() -> None:
    assert outcome_on_pool(HOLDS, [HOLDS, NOT_RESOLVED]) == HOLDS
    assert outcome_on_pool(HOLDS, [HOLDS, CONTRADICTED]) == CONTRADICTED
    assert outcome_on_pool(NOT_RESOLVED, [HOLDS, HOLDS]) == NOT_RESOLVED


def test_smallest_effect_shrinks_with_seeds() -> None:
    assert smallest_effect(1.0, 1) == float('inf')
    assert smallest_effect(1.0, 5) < smallest_effect(1.0, 3) < smallest_effect(1.0, 2)
    assert smallest_effect(1.0, 3) == pytest.approx(4.3027 / np.sqrt(3), rel=1e-3)


def test_paired_seeds_widen_by_student_and_by_the_images():
    values = [1.0, 2.0, 3.0]
    alone = student_interval(values)
    assert alone.estimate == 2
    assert alone.high - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # t of two degrees of freedom times s / sqrt n
    both = student_interval(values, image_error=1.0)
    assert both.high - 2 == pytest.approx(4.3027 * (1 / 3 + 1) ** 0.5, rel=1e-4)
    with pytest.raises(ValueError, match='at least two'):
        student_interval([1.0])


def test_the_spread_of_three_seeds_is_hardly_known() -> None:
    low, high = spread_interval(0.45, 3)
    assert (low, high) == (pytest.approx(0.234, abs=0.002), pytest.approx(2.83, abs=0.01))
    draws = np.random.default_rng(0).normal(size=(4000, 3)).std(axis=1, ddof=1)
    covered = [ends[0] < 1 < ends[1] for ends in (spread_interval(draw, 3) for draw in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
