"""Calibration, search and export with 2 GiB of memory: they end, or say in one line that it is not enough."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from tiny_detector import tiny_config
from tool_process import TOOLS, run_process
from two_branch_files import write_two_branch_files

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits of memory are set as Linux sets them'),
]
LIMIT = 2 << 30
LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_DATA, ({LIMIT}, {LIMIT}))
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(TOOLS)!r})
runpy.run_path(sys.argv[0], run_name='__main__')
"""
SIDES = {'small': 64, 'too large for it': 8000}


@pytest.fixture(scope='module')
def files(tiny_coco, tmp_path_factory) -> dict[str, Path]:
    """A config that calibrates, and what it calibrated."""
    folder = tmp_path_factory.mktemp('limited')
    _, checkpoint = write_two_branch_files(tiny_coco, folder)
    quant = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
    cfg = tiny_config(tiny_coco, folder, load_from=checkpoint)
    cfg.model.backbone.update(type='TwoBranchSwin', quant=quant)
    cfg.train_cfg = {'type': 'PTQLoop', 'num_images': 2}
    cfg.dump(folder / 'ptq.py')
    done = limited(folder, 'train.py', folder / 'ptq.py', '--work-dir', folder / 'ptq')
    assert done.returncode == 0, done.stdout[-3000:]
    return {'folder': folder, 'config': folder / 'ptq.py', 'checkpoint': folder / 'ptq' / 'epoch_1.pth'}


def limited(folder: Path, name: str, *words: object):
    return run_process(sys.executable, '-c', LIMITED, TOOLS / name, *words, cwd=folder, OMP_NUM_THREADS='1')


def with_images_of(files: dict[str, Path], side: int) -> Path:
    cfg = Config.fromfile(files['config'])
    for name in ('val_dataloader', 'test_dataloader'):
        cfg[name].dataset.pipeline[1].scale = (side, side)
    path = files['folder'] / f'{side}.py'
    cfg.dump(path)
    return path


@pytest.mark.parametrize('side', SIDES.values(), ids=SIDES)
@pytest.mark.parametrize('what', ['calibration', 'search', 'export'])
def test_a_tool_ends_or_says_that_memory_is_not_enough(files, tmp_path, what, side):
    config, checkpoint = with_images_of(files, side), files['checkpoint']
    words = {
        'calibration': ('train.py', config, '--work-dir', tmp_path),
        'search': (
            *('search.py', config, checkpoint, '--work-dir', tmp_path, '--budget', '0.85'),
            *('--population', '3', '--generations', '1', '--images', '2', '--force'),
        ),
        'export': (
            *('deploy.py', 'export', config, checkpoint, '-o', tmp_path / 'model.onnx'),
            *('--shape', side, side, '--scope', 'backbone', '--no-times'),
        ),
    }[what]
    done = limited(tmp_path, *words)
    if side == SIDES['small']:
        assert done.returncode == 0, done.stdout[-3000:]
    elif done.returncode:
        assert done.returncode == 2, done.stdout[-3000:]
        assert 'error: there is not enough memory' in done.stdout, done.stdout[-3000:]
