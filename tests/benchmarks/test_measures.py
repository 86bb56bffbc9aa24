"""Preconditions measured on made-up inputs whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evidence.measures import coverage, windows
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint
from pycocotools import mask as coco_mask


def encoded(mask: torch.Tensor) -> dict:
    rle = coco_mask.encode(mask.to(torch.uint8).t().contiguous().t().numpy())
    return {**rle, 'counts': rle['counts'].decode()}


def test_coverage_counts_overlap_once(tmp_path: Path) -> None:
    left, top = torch.zeros(10, 20), torch.zeros(10, 20)
    left[:, :10] = 1
    top[:5] = 1
    image = {'height': 10, 'width': 20}
    both = [{'segmentation': encoded(mask)} for mask in (left, top)]
    assert coverage.covered(both, image) == 0.75
    assert coverage.covered([], image) == 0
    annotations = [
        {'image_id': 1, 'area': 100, 'segmentation': encoded(left)},
        {'image_id': 2, 'area': 100, 'segmentation': encoded(top)},
    ]
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps({'images': [{'id': n, **image} for n in (1, 2, 3)], 'annotations': annotations}))
    found = coverage.describe(path)
    assert found['coverage']['estimate'] == pytest.approx(100 / 3, abs=1e-3)
    assert found['small_medium_large'] == [1, 0, 0]


def test_object_share_of_a_stream_that_lights_up_on_objects() -> None:
    """8 x 8 tokens, windows of 4: one of four windows is bright and holds three quarters of the object."""
    stream = torch.ones(1, 8, 8, 3)
    stream[:, :4, :4] = 5
    stream[:, 4:, 4:] = 2
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[2:8, 2:8] = True  # 36 pixels in the bright window
    mask[0:6, 14:16] = True  # 12 in a dark one
    share = windows.ObjectShare(window=4)
    share.see(stream, mask, [1])
    found = share.summary()
    assert found['L2']['estimate'] == pytest.approx(0.75)
    assert found['best']['estimate'] == pytest.approx(1.0)
    assert found['against_chance']['estimate'] == pytest.approx(1.5)


def test_random_halves_hold_half_of_the_objects() -> None:
    share = windows.ObjectShare(window=4)
    generator = torch.Generator().manual_seed(0)
    for key in range(200):
        mask = torch.zeros(32, 32, dtype=torch.bool)
        top, left = torch.randint(0, 20, (2,), generator=generator).tolist()
        mask[top : top + 12, left : left + 12] = True
        share.see(torch.rand(1, 16, 16, 2, generator=generator), mask, [key])
    found = share.summary()['random']
    assert found['low'] < 0.5 < found['high']
    assert found['high'] - found['low'] < 0.1


def test_channel_range_follows_all_inputs() -> None:
    follower = windows.ChannelRange()
    norm = torch.nn.Identity()
    norm.register_forward_hook(follower)
    norm(torch.tensor([[[0.0, 0.0, 1.0], [1.0, 2.0, 2.0]]]))
    norm(torch.tensor([[[0.5, 8.0, 1.5]]]))
    assert follower.ratio() == pytest.approx(8.0)
    with pytest.raises(ValueError, match='no LayerNorm output'):
        windows.ChannelRange().ratio()


def test_whole_measurement_on_a_tiny_detector(tiny_cfg: Config, tmp_path: Path) -> None:
    init_default_scope('mmdet')
    path = tmp_path / 'weights.pth'
    meta = {'dataset_meta': {'classes': ('box', 'disc', 'bar')}}
    save_checkpoint({'state_dict': MODELS.build(tiny_cfg.model).state_dict(), 'meta': meta}, str(path))
    found = windows.measure(SimpleNamespace(cfg=tiny_cfg, checkpoint=path))
    assert found['images'] == 4
    assert len(found['extras']['object_share']) == 4
    depths = tiny_cfg.model.backbone.depths
    assert len(found['extras']['channel_range_ratio']) == 2 * sum(depths) + 3
    assert all(entry['ratio'] >= 1 for entry in found['extras']['channel_range_ratio'])
    json.dumps(found['extras'], allow_nan=False)
