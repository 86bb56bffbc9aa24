"""The page for users with a config of their own works from its first block to its last."""

from __future__ import annotations

import torch
from page_blocks import run_page


def test_page_runs(tmp_path, monkeypatch):
    run_page('your-own-config.md', tmp_path, monkeypatch)
    weights = torch.load(tmp_path / 'my_detector.pth', weights_only=True)
    assert weights['meta']['dataset_meta']['classes'][2] == 'checked box'
    trained = torch.load(tmp_path / 'work_dirs/my_three_classes/epoch_1.pth', weights_only=True)
    assert trained['state_dict']['bbox_head.retina_cls.weight'].shape[0] == 9 * 3
