"""The robustness page: its losses are paired, and missing results are said to be missing."""

from __future__ import annotations

import numpy as np
import pytest
from evidence.plans import robustness


def test_relative_loss_is_the_mean_over_twins():
    ap = {'clean': np.array([40.0]), 'twin0': np.array([30.0]), 'twin1': np.array([20.0])}
    assert robustness.relative_loss(ap) == pytest.approx([37.5])


def test_every_arm_of_the_core_stage_runs_on_every_twin():
    names = [experiment.split for experiment in robustness.STAGES[0].experiments]
    for split in robustness.twins(robustness.CORE_SEVERITY):
        assert names.count(split) == len(robustness.ARMS)


def test_page_without_results_says_so():
    class Claim:
        def judge(self, interval):
            assert interval is None
            return {'id': 'R', 'claim': 'c', 'published': '-', 'metric': 'm', 'margin': '> 0', 'found': None,
                    'outcome': 'not run'}  # fmt: skip

    class Reader:
        def matches(self, experiment, kind='bbox'):
            return None

        def result(self, experiment):
            return None

        def claims(self):
            return dict.fromkeys(('R1', 'R2', 'R3', 'R4'), Claim())

    summary = robustness.summarise(Reader())
    assert [row['loss'] for row in summary['losses']] == [None] * len(summary['losses'])
    assert robustness.markdown(summary).count('not run') >= len(summary['losses'])
