"""CalibrationHook: which branches it calibrates, and when it leaves a model alone."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.hooks import CalibrationHook, calibration

QUANT = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}


@pytest.mark.parametrize(
    ('branches', 'model', 'before', 'iteration', 'expected'),
    [
        ('low', 'float', 'train', 0, 'all'),
        ('low', 'float', 'test', 0, 'all'),
        ('all', 'uniform', 'train', 0, None),
        ('low', 'uniform', 'train', 0, 'low'),
        ('low', 'uniform', 'test', 0, 'low'),
        ('low', 'uniform', 'train', 7, None),  # resumed: its beginning has calibrated
        ('low', 'adapted', 'train', 0, None),
        ('low', 'adapted', 'test', 0, None),
    ],
)
def test_what_is_calibrated(monkeypatch, branches, model, before, iteration, expected):
    net = backbone(QUANT)
    if model != 'float':
        Calibrator(net).run(images(1))
    net.low_trained.fill_(model == 'adapted')
    calls = []
    monkeypatch.setattr(calibration, 'loader_for', lambda *arguments: None)
    monkeypatch.setattr(calibration, 'calibrate_in_runner', lambda *_, branches: calls.append(branches))
    runner = SimpleNamespace(model=net, cfg={}, iter=iteration, hooks=[])
    hook = CalibrationHook(branches=branches)
    getattr(hook, f'before_{before}')(runner)
    assert calls == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ('method', 'trained_at', 'low_ratios', 'branches', 'warns'),
    [
        ('OFQ', 0.0, 0.5, 'all', True),
        ('LSQ', 0.0, [0.0, 0.2], 'all', True),
        ('OFQ', 0.0, 0.0, 'all', False),
        ('OFQ', 0.0, 0.5, 'low', False),
        ('OFQ', 0.5, 0.5, 'all', False),
        ('OFQ', None, 0.5, 'all', False),  # fitted and not trained
        ('RepQ', 0.0, 0.5, 'all', False),  # cannot calibrate the low branch alone
    ],
)
def test_a_test_warns_of_a_low_branch_left_behind(monkeypatch, method, trained_at, low_ratios, branches, warns):
    net = backbone({**QUANT, 'method': method})
    Calibrator(net).run(images(1))
    if trained_at is not None:
        net.set_ratios(trained_at)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        sum(out.square().mean() for out in net.train()(images(1)[0])).backward()
        optimizer.step()
    net.eval().set_ratios(low_ratios)
    warnings = []
    monkeypatch.setattr(calibration, 'print_log', lambda text, _, level: warnings.append((text, level)))
    monkeypatch.setattr(calibration, 'loader_for', lambda *arguments: None)
    monkeypatch.setattr(calibration, 'calibrate_in_runner', lambda *_, branches: None)
    CalibrationHook(branches=branches).before_test(SimpleNamespace(model=net, cfg={}, iter=0, hooks=[]))
    assert [level for _, level in warnings] == [logging.WARNING] * warns
    assert all("branches='low'" in text for text, _ in warnings)


def test_an_unknown_branch():
    with pytest.raises(ValueError, match="branches='both' is unknown"):
        CalibrationHook(branches='both')
