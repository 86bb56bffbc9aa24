"""The page for users with a config of their own works from its first block to its last."""

from __future__ import annotations

import pytest
import torch
from page_blocks import run_page


def load_epoch(folder, name):
    return torch.load(folder / f'work_dirs/{name}/epoch_1.pth', weights_only=True)['state_dict']


def integers(state, suffix):
    return {int(value) for name, value in state.items() if name.endswith(suffix)}


@pytest.mark.nightly  # the longest page; make docs-test runs it too
def test_page_runs(tmp_path, monkeypatch):
    run_page('your-own-config.md', tmp_path, monkeypatch)
    weights = torch.load(tmp_path / 'my_detector.pth', weights_only=True)
    assert weights['meta']['dataset_meta']['classes'][2] == 'checked box'
    assert load_epoch(tmp_path, 'my_three_classes')['bbox_head.retina_cls.weight'].shape[0] == 9 * 3

    calibrated = load_epoch(tmp_path, 'my_ptq')
    assert integers(calibrated, '.calibrated') == {1}
    assert integers(calibrated, '.low.bit_width') == {4}
    assert integers(calibrated, 'qkv.folded') == {1}, 'RepQ folds scales into the weights behind a norm'

    trained = load_epoch(tmp_path, 'my_qat')
    assert integers(trained, '.calibrated') == {1}
    assert integers(trained, 'backbone.low_trained') == {1}
    offsets = [value for name, value in trained.items() if name.endswith('qkv.input_quant.high.before')]
    assert any(offset.any() for offset in offsets), 'calibration starts the offsets of signed grids at zero'
