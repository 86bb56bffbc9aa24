"""The page on deployment: its commands run on a tiny calibrated detector, and its benchmark commands parse."""

from __future__ import annotations

import json
import shlex
from importlib import import_module
from pathlib import Path

import page_blocks
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from page_blocks import blocks
from tiny_detector import tiny_config, write_tiny_coco
from tool_process import REPOSITORY

from mixaq_mmdet.engine.calibration import Calibrator


@pytest.fixture
def calibrated(tmp_path):
    """A folder with calibrated.py, calibrated.pth and a search split."""
    data = write_tiny_coco(tmp_path / 'data')
    (data / 'annotations').mkdir()
    (data / 'annotations' / 'instances_search.json').write_text((data / 'annotations.json').read_text())
    (data / 'search').symlink_to(data / 'images')
    folder = tmp_path / 'root'
    folder.mkdir()
    cfg = tiny_config(data, folder / 'work_dir')
    cfg.model.backbone.update(type='TwoBranchSwin', quant=dict(method='MinMax', w_bits=8, a_bits=8, low_a_bits=4))
    cfg.dump(folder / 'calibrated.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).eval()
    Calibrator(model.backbone).run([torch.randn(1, 3, 64, 64)])
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, folder / 'calibrated.pth')
    return folder


def on_calibrated(page):
    """The page's blocks, with the fixture's files in the place of a user's."""
    for block in blocks(page):
        # a busy machine may need more for the tiny model than the page allows a Swin-T
        names = {'CONFIG': 'calibrated.py', 'CKPT': 'calibrated.pth', '400': '40000'}
        block.before, block.names = [], names
        yield block


def test_page_runs(calibrated, monkeypatch, capsys):
    monkeypatch.setattr(page_blocks, 'blocks', on_calibrated)
    page_blocks.run_page('deploy.md', calibrated, monkeypatch)
    printed = capsys.readouterr().out
    assert 'run as' in printed
    assert 'integer (' in printed
    found = json.loads((calibrated / 'work_dirs/search_integer/search_integer.json').read_text())
    assert found['chosen']['latency'] <= 40000
    table = json.loads((calibrated / 'work_dirs/search_integer/latency.json').read_text())
    assert table['path'].startswith('integer (')


def test_benchmark_commands_parse(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / 'benchmarks')
    commands = [shlex.split(command) for block in blocks('deploy.md') if block.not_run for command in block.commands()]
    assert {Path(command[1]).stem for command in commands} == {'deploy', 'deploy_agreement', 'deploy_detector'}
    for command in commands:
        import_module(Path(command[1]).stem).parse_args(command[2:])
