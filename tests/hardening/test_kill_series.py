"""``kill -9`` at random moments, again and again: the same command goes on and ends with the uninterrupted numbers.

``MIXAQ_KILLS`` says how often each is killed (default: 20).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import start_script
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_detector import tiny_config, tiny_mask_rcnn, write_tiny_coco
from tool_process import TOOLS

from mixaq_mmdet.engine.calibration import Calibrator

pytestmark = pytest.mark.nightly
KILLS = int(os.environ.get('MIXAQ_KILLS', '20'))
SEARCHED = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
RECONSTRUCTED = {'method': 'AIQViT', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2, 'steps': 6, 'search_steps': 2}
CALIBRATED = {'method': 'RepQ', 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4}


class Command:
    """A command that may be given again: ``start`` runs it in a process of its own, its output goes to a log."""

    def __init__(self, folder: Path, tool: str, *arguments: object) -> None:
        self.folder, self.tool, self.arguments = folder, tool, arguments

    def start(self, work_dir: str) -> Any:
        words = [*self.arguments, '--work-dir', self.folder / work_dir]
        return start_script(TOOLS / self.tool, words, self.folder, {}, self.log(work_dir))

    def log(self, work_dir: str) -> Path:
        return self.folder / f'{work_dir}.log'

    def finish(self, work_dir: str) -> float:
        """Run to the end; returns the seconds that took."""
        begin = time.monotonic()
        process = self.start(work_dir)
        process.join(600)
        assert process.exitcode == 0, self.log(work_dir).read_text(errors='replace')[-3000:]
        return time.monotonic() - begin

    def survive(self, seed: int) -> None:
        """Run to the end in spite of ``KILLS`` kills at random moments; the uninterrupted run is in 'whole'."""
        duration = self.finish('whole')
        moments = random.Random(seed)
        for _ in range(KILLS):
            process = self.start('killed')
            process.join(moments.uniform(0, duration))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            assert process.exitcode in (0, -signal.SIGKILL), self.log('killed').read_text(errors='replace')[-3000:]
        self.finish('killed')


def write_config(folder: Path, quant: dict[str, Any] | None = None, **edits: Any) -> Config:
    """A tiny detector's config, and ``float.pth`` beside it."""
    cfg = tiny_config(write_tiny_coco(folder / 'data'), folder / 'unused', **edits)
    if quant is not None:
        cfg.model.backbone.update(type='TwoBranchSwin', quant=quant, drop_path_rate=0.0)
        cfg.load_from = str(folder / 'float.pth')
    cfg.dump(folder / 'tiny.py')
    plain = tiny_mask_rcnn()
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        torch.save({'meta': {}, 'state_dict': MODELS.build(plain).state_dict()}, folder / 'float.pth')
    return cfg


def same_weights(folder: Path, name: str) -> None:
    """The checkpoint of the killed runs holds the uninterrupted run's weights."""
    whole, killed = (
        torch.load(folder / run / name, weights_only=True, map_location='cpu')['state_dict']
        for run in ('whole', 'killed')
    )
    assert list(whole) == list(killed)
    differing = [key for key, value in whole.items() if not torch.equal(value, killed[key])]
    assert not differing


def test_training(tmp_path):
    hooks: Sequence[dict] = [{'type': 'ExactResumeHook'}]
    write_config(tmp_path, model=tiny_mask_rcnn(drop_path_rate=0.5), custom_hooks=hooks)
    edits = ['--cfg-options', 'train_cfg.max_epochs=4', 'default_hooks.checkpoint.max_keep_ckpts=2']
    Command(tmp_path, 'train.py', tmp_path / 'tiny.py', *edits, '--resume').survive(seed=1)
    same_weights(tmp_path, 'epoch_4.pth')


@pytest.mark.parametrize('quant', [CALIBRATED, RECONSTRUCTED], ids=['calibration', 'reconstruction'])
def test_calibration(tmp_path, quant):
    write_config(tmp_path, quant, train_cfg={'type': 'PTQLoop', 'num_images': 4, '_delete_': True})
    Command(tmp_path, 'train.py', tmp_path / 'tiny.py').survive(seed=2)
    same_weights(tmp_path, 'epoch_1.pth')
    assert not (tmp_path / 'killed/calibration_blocks').exists()


def test_search(tmp_path):
    cfg = write_config(tmp_path, SEARCHED)
    cfg.train_dataloader.dataset.data_root = str(write_tiny_coco(tmp_path / 'train', 4, seed=3))
    cfg.dump(tmp_path / 'tiny.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).eval()
    Calibrator(model.backbone).run([torch.randn(1, 3, 64, 64)])
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'tiny.pth')
    settings = ['--population', 3, '--generations', 2, '--images', 3, '--budget', 0.85, '--resume']
    Command(tmp_path, 'search.py', tmp_path / 'tiny.py', tmp_path / 'tiny.pth', *settings).survive(seed=3)
    whole, killed = (json.loads((tmp_path / run / 'search_tiny.json').read_text()) for run in ('whole', 'killed'))
    assert killed['evaluated'] == whole['evaluated']
    assert killed['front'] == whole['front']
