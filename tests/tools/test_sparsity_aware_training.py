"""Whole detectors under tools/train.py with the sparsity-aware wrapper: killed and resumed, and on two ranks."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_detector import tiny_config, tiny_mask_rcnn
from tool_process import logged_losses, run_tool

from mixaq_mmdet.engine.ratio_sampling import RatioSampler

HOOKS = """
import os, signal, torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class WriteStepHook(Hook):
    def __init__(self, folder, kill_after=0):
        self.folder, self.kill_after = folder, kill_after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        ratios = [model.backbone.low_ratios, model.backbone.prune_ratios]
        rank = os.environ.get('RANK', '0')
        content = {'ratios': ratios, 'parameters': dict(model.named_parameters())}
        torch.save(content, f'{self.folder}/rank{rank}_step{runner.iter + 1}.pth')
        if runner.iter + 1 == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def config_file(tiny_coco, tmp_path) -> Path:
    """Three epochs of two updates, pruning on, a moving average beside the model, validation at the end of each."""
    (tmp_path / 'write_step_hook.py').write_text(HOOKS)
    cfg = tiny_config(
        tiny_coco,
        tmp_path / 'unused',
        model=tiny_mask_rcnn(type='TwoBranchSwin', drop_path_rate=0.5, low_ratios=0.5),
        custom_imports={'imports': ['mixaq_mmdet', 'write_step_hook'], 'allow_failed_imports': False},
        custom_hooks=[
            {'type': 'ExactResumeHook'},
            {'type': 'EMAHook', 'momentum': 0.1},
            {'type': 'WriteStepHook', 'folder': str(tmp_path)},
        ],
    )
    cfg.train_cfg.update(max_epochs=3, val_interval=3)
    cfg.optim_wrapper.update(
        type='SparsityAwareOptimWrapper', constructor='SparsityAwareOptimWrapperConstructor', prune=True, seed=5
    )
    cfg.dump(tmp_path / 'tiny.py')
    return tmp_path / 'tiny.py'


def drawn(updates: int) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    sampler = RatioSampler(prune=True, seed=5)
    return [sampler.draw(4, update) for update in range(updates)]


def written(folder: Path, rank: int, steps: range) -> list[dict]:
    return [torch.load(folder / f'rank{rank}_step{step}.pth', weights_only=True) for step in steps]


def logged(work_dir: Path, name: str) -> dict[int, float]:
    lines = [line for log in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in log.read_text().splitlines()]
    return {record['step']: record[name] for line in lines if name in (record := json.loads(line))}


def test_a_killed_run_goes_on_with_the_ratios_of_the_uninterrupted_one(config_file, tmp_path):
    """kill -9 after the first update of the second epoch, then --resume."""
    whole, interrupted = tmp_path / 'whole', tmp_path / 'interrupted'
    environment = {'PYTHONPATH': str(tmp_path)}
    run = run_tool('train.py', 'tiny.py', '--work-dir', whole, cwd=tmp_path, **environment)
    assert run.returncode == 0, run.stdout
    expected = written(tmp_path, 0, range(1, 7))
    assert [tuple(step['ratios']) for step in expected] == drawn(6)
    assert sorted(logged(whole, 'relative_bops')) == [1, 2, 3, 4, 5, 6]

    killer = Config.fromfile(config_file, import_custom_modules=False)
    killer.custom_hooks[-1].kill_after = 3
    killer.dump(tmp_path / 'killer.py')
    killed = run_tool('train.py', 'killer.py', '--work-dir', interrupted, cwd=tmp_path, **environment)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    for step in range(1, 7):
        (tmp_path / f'rank0_step{step}.pth').unlink()
    resumed = run_tool('train.py', 'tiny.py', '--work-dir', interrupted, '--resume', cwd=tmp_path, **environment)
    assert resumed.returncode == 0, resumed.stdout
    for found, target in zip(written(tmp_path, 0, range(3, 7)), expected[2:], strict=True):
        assert found['ratios'] == target['ratios']
        for name, value in target['parameters'].items():
            torch.testing.assert_close(found['parameters'][name], value, rtol=1e-4, atol=1e-5)
    assert logged_losses(interrupted) == pytest.approx(logged_losses(whole), abs=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason='CPU ranks start only where no accelerator is visible')
def test_two_ranks_share_ratios_and_parameters(config_file, tmp_path):
    cfg = Config.fromfile(config_file, import_custom_modules=False)
    cfg.train_dataloader.batch_size = 1
    cfg.train_cfg.update(max_epochs=2)
    cfg.randomness = {'seed': 0, 'diff_rank_seed': True}
    cfg.dump(config_file)
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        environment = {'PORT': str(probe.getsockname()[1]), 'PYTHONPATH': str(tmp_path)}
    run = run_tool('dist_train.sh', 'tiny.py', '2', '--work-dir', tmp_path / 'ranks', cwd=tmp_path, **environment)
    assert run.returncode == 0, run.stdout
    first, second = written(tmp_path, 0, range(1, 4)), written(tmp_path, 1, range(1, 4))
    assert [tuple(step['ratios']) for step in first] == [tuple(step['ratios']) for step in second] == drawn(3)
    for name, value in first[-1]['parameters'].items():
        assert torch.equal(value, second[-1]['parameters'][name]), name
