"""The claims without training, asked again: the same rows of another float model."""

from __future__ import annotations

import pytest
from evidence.experiment import Experiment, fingerprint, resolved
from evidence.plans import ptq, ptq_longer, zoo
from evidence.plans.float_models import FIRST, LONGER
from evidence.splits import SEALED


def origin(row: Experiment) -> str:
    start = row.starts_from
    return origin(start) if isinstance(start, Experiment) else str(start)


@pytest.mark.parametrize(('first', 'again'), zip(ptq.ROWS, ptq_longer.ROWS, strict=True), ids=lambda row: row.name)
def test_rows_differ_in_the_float_model_alone(first: Experiment, again: Experiment) -> None:
    assert (origin(first), origin(again)) == (FIRST, LONGER)
    assert (again.kind, again.split, again.seed) == (first.kind, first.split, first.seed)
    assert resolved(again).to_dict() == resolved(first).to_dict()


def test_claims_compare_the_same_rows() -> None:
    again = dict(zip((row.name for row in ptq.ROWS), ptq_longer.ROWS, strict=True))
    for claim, (treatment, control) in ptq.PAIRS.items():
        assert ptq_longer.ON_VAL[f'L{claim[1:]}'] == (again[treatment.name], again[control.name])


def test_rows_that_the_table_of_methods_has_are_run_once() -> None:
    table = {fingerprint(row) for rows in zoo.SETTINGS.values() for row in (rows['RepQ'],)}
    assert table < {fingerprint(row) for row in ptq_longer.ROWS}


def test_unseen_rows_are_the_calibrated_models_on_a_thousand_images() -> None:
    calibrations = {fingerprint(row) for row in ptq_longer.ROWS if row.kind == 'train'}
    for row in ptq_longer.SEALED_ROWS:
        for split in SEALED:
            on_split = row.on(split)
            assert resolved(on_split).test_dataloader.dataset.indices == 1000
            assert origin(on_split) == LONGER
        start = row.starts_from
        assert start == LONGER or (isinstance(start, Experiment) and fingerprint(_calibration(start)) in calibrations)


def _calibration(row: Experiment) -> Experiment:
    while row.kind != 'train':
        assert isinstance(row.starts_from, Experiment)
        row = row.starts_from
    return row
