"""``kill -9`` at random moments, again and again: the same command goes on and ends with the uninterrupted numbers."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
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
KILLS = 20
ATTEMPTS = 4 * KILLS
SEARCHED = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
RECONSTRUCTED = {'method': 'AIQViT', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2, 'steps': 4, 'search_steps': 1}
CALIBRATED = {'method': 'RepQ', 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4}


class Command:
    """A command that may be given again: ``start`` runs it in a process of its own, its output goes to a log.

    ``result`` is the last file that it writes into its work folder.
    """

    def __init__(self, folder: Path, result: str, tool: str, *arguments: object) -> None:
        self.folder, self.result, self.tool, self.arguments = folder, result, tool, arguments

    def start(self, work_dir: str) -> Any:
        words = [*self.arguments, '--work-dir', self.folder / work_dir]
        return start_script(TOOLS / self.tool, words, self.folder, {}, self.log(work_dir))

    def log(self, work_dir: str) -> Path:
        return self.folder / f'{work_dir}.log'

    def finish(self, work_dir: str) -> tuple[float, float]:
        """Run to the end; returns the seconds until its work folder was there, and those until the end."""
        begin = time.monotonic()
        process = self.start(work_dir)
        while process.is_alive() and not (self.folder / work_dir).exists():
            time.sleep(0.01)
        working = time.monotonic() - begin
        process.join(600)
        assert process.exitcode == 0, self._end_of_log(work_dir)
        return working, time.monotonic() - begin

    def survive(self, seed: int, same: Callable[[Path, Path], None]) -> None:
        """Kill at random moments of the work until ``KILLS`` kills have found it unfinished; ``same`` compares results.

        A run that ends before it is killed has to have the uninterrupted numbers; the next one starts from nothing.
        """
        whole, killed = self.folder / 'whole', self.folder / 'killed'
        self.finish('whole')  # not timed: it also starts the server that processes are forked from
        working, end = self.finish('timed')
        same(whole, self.folder / 'timed')
        moments, kills = random.Random(seed), 0
        for _ in range(ATTEMPTS):
            process = self.start('killed')
            process.join(moments.uniform(working, end))
            process.kill()
            process.join()
            if process.exitcode == 0:
                same(whole, killed)
                shutil.rmtree(killed)
                continue
            assert process.exitcode == -signal.SIGKILL, self._end_of_log('killed')
            kills += not (killed / self.result).exists()
            if kills == KILLS:
                break
        assert kills == KILLS
        self.finish('killed')
        same(whole, killed)

    def _end_of_log(self, work_dir: str) -> str:
        return self.log(work_dir).read_text(errors='replace')[-3000:]


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


def same_weights(whole: Path, other: Path) -> None:
    """Both folders hold one checkpoint of the last epoch, with the same weights."""
    name = (whole / 'last_checkpoint').read_text().rsplit('/', 1)[-1]
    states = [
        torch.load(folder / name, weights_only=True, map_location='cpu')['state_dict'] for folder in (whole, other)
    ]
    assert list(states[0]) == list(states[1])
    assert not [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    assert not (other / 'calibration_blocks').exists()


def same_search(whole: Path, other: Path) -> None:
    """Both folders hold the same candidates with the same scores."""
    results = [json.loads((folder / 'search_tiny.json').read_text()) for folder in (whole, other)]
    assert results[0]['evaluated'] == results[1]['evaluated']
    assert results[0]['front'] == results[1]['front']


def test_training(tmp_path):
    hooks: Sequence[dict] = [{'type': 'ExactResumeHook'}]
    write_config(tmp_path, model=tiny_mask_rcnn(drop_path_rate=0.5), custom_hooks=hooks)
    edits = ['--cfg-options', 'train_cfg.max_epochs=4', 'default_hooks.checkpoint.max_keep_ckpts=2']
    command = Command(tmp_path, 'epoch_4.pth', 'train.py', tmp_path / 'tiny.py', *edits, '--resume')
    command.survive(1, same_weights)


@pytest.mark.parametrize('quant', [CALIBRATED, RECONSTRUCTED], ids=['calibration', 'reconstruction'])
def test_calibration(tmp_path, quant):
    write_config(tmp_path, quant, train_cfg={'type': 'PTQLoop', 'num_images': 2, '_delete_': True})
    Command(tmp_path, 'epoch_1.pth', 'train.py', tmp_path / 'tiny.py').survive(2, same_weights)


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
    command = Command(tmp_path, 'tiny_searched.py', 'search.py', tmp_path / 'tiny.py', tmp_path / 'tiny.pth', *settings)
    command.survive(3, same_search)
