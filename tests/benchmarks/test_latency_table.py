"""benchmarks/latency_table.py on a tiny backbone: errors are those of the table, and the verdict follows from them."""

from __future__ import annotations

import argparse
import json

import latency_table
import pytest
from tiny_backbone import backbone

from mixaq_mmdet.analysis import latency


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(latency, 'GRID', ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.4, 0.4)))
    subjects = {latency_table.QUICK: ('tiny.py', (64, 64), False), 'other': ('no.py', (), True)}
    monkeypatch.setattr(latency_table, 'SUBJECTS', subjects)
    monkeypatch.setattr(latency_table, 'build', lambda config, integer: backbone())


def test_errors_are_of_predictions_for_ratios_outside_the_table(tiny):
    args = argparse.Namespace(rounds=1, clock='cpu', seed=0, vectors=3)
    found = latency_table.accuracy(backbone(), (64, 64), args)
    assert len(found['vectors']) == 3
    for row in found['vectors']:
        assert row['error'] == pytest.approx(row['predicted_ms'] / row['ms'] - 1)
    assert found['largest error'] == max(abs(row['error']) for row in found['vectors'])
    assert found['median error'] <= found['largest error']


@pytest.mark.parametrize(('limit', 'verdict', 'code'), [(1e9, 'holds', 0), (-1.0, 'MISSED', 1)])
def test_quick_writes_its_figures_and_judges_them(tiny, monkeypatch, tmp_path, capsys, limit, verdict, code):
    monkeypatch.setattr(latency_table, 'LIMIT', limit)
    assert latency_table.main(['--quick', '--clock', 'cpu', '--json', str(tmp_path / 'found.json')]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(verdict)
    content = json.loads((tmp_path / 'found.json').read_text())
    assert list(content['subjects']) == [latency_table.QUICK]
    assert len(content['subjects'][latency_table.QUICK]['vectors']) == 4
    assert {'threads', 'torch', 'device', 'clock'} <= set(content)
