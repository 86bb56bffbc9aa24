"""CalibrationHook: which branches it calibrates, and when it leaves a model alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
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


def test_an_unknown_branch():
    with pytest.raises(ValueError, match="branches='both' is unknown"):
        CalibrationHook(branches='both')
