"""The robustness page: its losses are paired, and missing results are said to be missing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from evidence.experiment import REPOSITORY
from evidence.plans import robustness
from evidence.reader import Reader
from evidence.store import Store


def test_relative_loss_is_the_mean_over_twins():
    ap = {'clean': np.array([40.0]), 'twin0': np.array([30.0]), 'twin1': np.array([20.0])}
    assert robustness.relative_loss(ap) == pytest.approx([37.5])


def test_every_arm_of_the_core_stage_runs_on_every_twin():
    names = [experiment.split for experiment in robustness.STAGES[0].experiments]
    for split in robustness.twins(robustness.CORE_SEVERITY):
        assert names.count(split) == len(robustness.ARMS)


def test_page_without_results_says_so(tmp_path, monkeypatch):
    shutil.copy(REPOSITORY / 'docs/results/protocol.md', tmp_path)
    monkeypatch.setattr(Reader, 'result', lambda self, experiment: None)
    page = robustness.TOPICS[0]
    summary = page.summarise(Reader(Store(tmp_path)))
    assert [row['loss'] for row in summary['losses']] == [None] * len(summary['losses'])
    text = page.markdown(summary)
    assert 'Not run: R1; R2; R3; R4; R5; R6.' in text
    assert 'window SQNR by importance, trained for as long' in text


def test_noise_by_importance_is_measured_on_equally_trained_models():
    before, control, after = robustness.HALVES.values()
    assert control.starts_from.starts_from == after.starts_from.starts_from == before.starts_from
    assert len({(arm.measure, arm.split, str(arm.settings)) for arm in (before, control, after)}) == 1
