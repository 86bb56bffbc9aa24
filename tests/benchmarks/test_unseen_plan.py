"""Claims on the test splits: decided on the pool, contradicted by either part, and the shift of style."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evidence.claims import Claim
from evidence.comparisons import POOL, SETS, judge_on_sets
from evidence.experiment import fingerprint
from evidence.intervals import CONTRADICTED, HOLDS, NOT_RESOLVED, Interval
from evidence.plans import unseen
from evidence.reader import Reader
from evidence.splits import SEALED
from evidence.store import Store

from mixaq_mmdet.engine.matches import Matches, pool

CLAIM = Claim('U0', 'better', '-', 'AP, treatment - control', '> 0', '1', 'test, test_b')


def of(*hits: bool, split: str) -> Matches:
    """One object and one detection in every picture; a hit counts at every threshold."""
    count = len(hits)
    return Matches(
        image_ids=np.array([f'{split}/{number}' for number in range(count)]),
        categories=np.array(['thing']),
        objects=np.ones((1, count), np.int16),
        counts=np.ones((1, count), np.int16),
        scores=np.full(count, 0.5, np.float32),
        hits=np.array([0x3FF if hit else 0 for hit in hits], np.uint16),
        ignored=np.zeros(count, np.uint16),
    )


def arm(own: int, other: int, of_pictures: int = 40) -> dict[str, Matches]:
    """An arm that finds so many of the objects of either style."""
    parts = {
        split: of(*(number < found for number in range(of_pictures)), split=split)
        for split, found in zip(SEALED, (own, other), strict=True)
    }
    return {**parts, POOL: pool(list(parts.values()))}


def test_row_counts_once_it_was_run_on_both_styles(tmp_path: Path) -> None:
    reader = Reader(Store(tmp_path))
    for found, split in zip((30, 20), SEALED, strict=True):
        assert reader.on_both_styles(unseen.FLOAT) is None
        matches = of(*(number < found for number in range(40)), split=split)
        reader.store.write(fingerprint(unseen.FLOAT.on(split)), {'name': 'float'}, {'bbox': matches})
    sets = reader.on_both_styles(unseen.FLOAT)
    assert sets is not None
    assert {name: len(matches.image_ids) for name, matches in sets.items()} == dict(
        zip(SETS, (40, 40, 80), strict=True)
    )
    again = reader.on_both_styles(unseen.FLOAT)
    assert again is not None
    assert again[POOL] is sets[POOL]  # what was resampled for one page serves the next


@pytest.mark.parametrize(
    ('test', 'test_b', 'both', 'expected'),
    [
        ((1, 2), (-1, 3), (0.5, 2), HOLDS),
        ((1, 2), (-2, -1), (0.5, 2), CONTRADICTED),
        ((1, 2), (1, 2), (-0.5, 2), NOT_RESOLVED),
    ],
)
def test_pool_decides_unless_a_style_contradicts(
    test: tuple[float, float], test_b: tuple[float, float], both: tuple[float, float], expected: str
) -> None:
    found = {
        name: Interval(sum(ends) / 2, *ends, 0.1, 10, 1) for name, ends in zip(SETS, (test, test_b, both), strict=True)
    }
    judged = judge_on_sets(CLAIM, found)
    assert judged['outcome'] == expected
    assert judged['found']['estimate'] == sum(both) / 2
    assert list(judged['sets']) == list(SETS)


def test_nothing_is_judged_before_both_styles_were_run() -> None:
    assert judge_on_sets(CLAIM, None)['outcome'] == 'not run'


def test_loss_of_style_is_positive_where_the_first_arm_loses_more() -> None:
    steady, fragile = arm(36, 33), arm(36, 9)
    found = unseen.loss_of_style(fragile, steady)
    assert found.low > 0
    assert found.images == 80
    assert unseen.loss_of_style(steady, fragile).estimate == pytest.approx(-found.estimate)
    assert unseen.loss_of_style(steady, steady).as_dict()['standard_error'] == 0


def test_every_claim_has_a_stage_that_runs_both_its_arms_on_both_styles() -> None:
    pairs = {**unseen.PAIRS, **unseen.LOSSES}
    staged = {claim for stage in unseen.STAGES for claim in stage.claims}
    run = {experiment.name for stage in unseen.STAGES for experiment in stage.experiments}
    assert staged == set(pairs)
    for arms in pairs.values():
        assert {row.on(split).name for row in arms for split in SEALED} <= run
