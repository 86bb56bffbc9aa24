"""Calibration by mmdet's own tools/train.py, and by ours on two ranks, gives the file of our tool on one."""

from __future__ import annotations

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from forked import free_port
from tiny_detector import tiny_config
from tool_process import load_tool, run_on_two_ranks, run_tool
from two_branch_files import write_two_branch_files

STOCK_TRAIN = Path(find_spec('mmdet').origin).parent / '.mim/tools/train.py'


@pytest.fixture(scope='module')
def calibrate(tiny_coco, tmp_path_factory):
    """Write the config of a method and run tools/train.py on it, once each; gives (config, work folder)."""
    folder = tmp_path_factory.mktemp('calibrated')
    _, checkpoint = write_two_branch_files(tiny_coco, folder)
    done = {}

    def run(method: str) -> tuple[Path, Path]:
        if method not in done:
            quant = {'method': method, 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
            edits = {'model.backbone.type': 'TwoBranchSwin', 'model.backbone.quant': quant}
            loop = {'_delete_': True, 'type': 'PTQLoop', 'num_images': 3}
            cfg = tiny_config(tiny_coco, folder, **edits, train_cfg=loop, load_from=checkpoint)
            cfg.dump(folder / f'{method}.py')
            done[method] = folder / f'{method}.py', folder / method
            load_tool('train.py').main([str(folder / f'{method}.py'), '--work-dir', str(folder / method)])
        return done[method]

    return run


def assert_same_files(found: Path, reference: Path) -> None:
    weights, expected = (
        torch.load(folder / 'epoch_1.pth', weights_only=True)['state_dict'] for folder in (found, reference)
    )
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
    assert json.loads((found / 'calibration.json').read_text()) == json.loads(
        (reference / 'calibration.json').read_text()
    )


def test_stock_train_calibrates_to_the_same_file(calibrate, tmp_path, monkeypatch):
    config, reference = calibrate('Percentile')
    monkeypatch.setattr(sys, 'argv', ['train.py', str(config), '--work-dir', str(tmp_path)])
    runpy.run_path(str(STOCK_TRAIN), run_name='__main__')
    assert_same_files(tmp_path, reference)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'calibrated on 3 images (seed 0)' in log
    assert 'coco/bbox_mAP' in log


@pytest.mark.skipif(torch.cuda.is_available(), reason='CPU ranks start only where no accelerator is visible')
def test_two_ranks_write_the_same_file(calibrate, tmp_path):
    """Three images: the ranks' shares differ."""
    config, reference = calibrate('Percentile')
    run = run_on_two_ranks('train.py', config, '--work-dir', tmp_path / 'two', cwd=tmp_path)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count('calibrated on 3 images (seed 0)') == 1
    assert_same_files(tmp_path / 'two', reference)


@pytest.mark.nightly
@pytest.mark.skipif(torch.cuda.is_available(), reason='CPU ranks start only where no accelerator is visible')
@pytest.mark.parametrize('method', ['MinMax', 'Percentile', 'MSE', 'RepQ'])
def test_dist_train_writes_the_same_file(calibrate, tmp_path, method):
    config, reference = calibrate(method)
    run = run_tool('dist_train.sh', config, '2', '--work-dir', tmp_path / 'two', cwd=tmp_path, PORT=free_port())
    assert run.returncode == 0, run.stdout
    assert_same_files(tmp_path / 'two', reference)
