"""benchmarks/deploy_agreement.py on a tiny detector: both backbones are evaluated, and a difference is told."""

from __future__ import annotations

import json

import deploy_agreement
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_detector import tiny_config

from mixaq_mmdet.engine.calibration import Calibrator


@pytest.fixture
def files(tiny_coco, tmp_path):
    """A config and a calibrated checkpoint."""
    cfg = tiny_config(tiny_coco, tmp_path / 'work_dir')
    cfg.model.backbone.update(type='TwoBranchSwin', quant=dict(method='LSQ', w_bits=8, a_bits=8, low_a_bits=4))
    cfg.dump(tmp_path / 'tiny.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).eval()
    Calibrator(model.backbone).run([torch.randn(1, 3, 64, 64)])
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'tiny.pth')
    return [str(tmp_path / 'tiny.py'), str(tmp_path / 'tiny.pth')]


def test_both_backbones_are_evaluated(files, tmp_path, capsys):
    out = tmp_path / 'agreement.json'
    arguments = ['--images', '2', '--engines', 'torch', '--ratios', '0/0', '0.5/0.2', '--json', str(out)]
    deploy_agreement.main([*files, *arguments])
    found = json.loads(out.read_text())
    assert [row['ratios'] for row in found['rows']] == [[0.0, 0.0], [0.5, 0.2]]
    assert all('plain torch' in row['runs as'] and row['within'] for row in found['rows'])
    assert {'bbox', 'segm'} == set(found['rows'][0]['twin'])
    assert capsys.readouterr().out.count('(within 0.1)') == 2


def test_a_difference_ends_with_a_status(files, monkeypatch, capsys):
    results = iter([{'bbox': 40.0}, {'bbox': 39.8}])
    monkeypatch.setattr(deploy_agreement, 'box_and_mask_ap', lambda *_: next(results))
    with pytest.raises(SystemExit) as stop:
        deploy_agreement.main([*files, '--engines', 'torch'])
    assert stop.value.code == 1
    assert (
        "the config's ratios: AP simulated -> integer: bbox 40.00 -> 39.80 (NOT within 0.1)" in capsys.readouterr().out
    )


def test_the_simulated_model_differs_from_itself_by_roundings_alone(files, tmp_path, capsys):
    out = tmp_path / 'agreement.json'
    deploy_agreement.main([*files, '--images', '2', '--engines', 'nudged', '--json', str(out)])
    assert json.loads(out.read_text())['rows'][0]['runs as'] == 'simulated, stream nudged'
    assert 'simulated -> nudged' in capsys.readouterr().out


def test_a_nudge_moves_the_stream_and_leaves_the_detector_as_it_is(files):
    detector = deploy_agreement.calibrated_detector(Config.fromfile(files[0]), files[1])
    nudged = deploy_agreement.nudged_twin(detector)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after, again = (model.backbone.embed(images)[0] for model in (detector, nudged, detector))
    assert torch.equal(before, again)
    assert (after != before).any()
    torch.testing.assert_close(after, before, rtol=2e-6, atol=1e-7)


def test_ratios_are_pairs(capsys):
    with pytest.raises(SystemExit):
        deploy_agreement.parse_args(['config', 'checkpoint', '--ratios', '0.5'])
    assert 'write low/prune' in capsys.readouterr().err
