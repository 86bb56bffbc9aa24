"""Whole quantized detectors under tools/train.py with the sparsity-aware wrapper: killed and resumed, on two ranks."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tensorboard.backend.event_processing import event_accumulator
from tiny_detector import tiny_config, tiny_mask_rcnn
from tool_process import logged_losses, run_on_two_ranks, run_tool

from mixaq_mmdet.engine.ratio_sampling import RatioSampler
from mixaq_mmdet.registry import MODELS

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


QUANT = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}
SCALARS = ('low_ratio', 'prune_ratio', 'mean_activation_bits', 'relative_bops')


@pytest.fixture
def config_file(tiny_coco, tmp_path) -> Path:
    """Six updates, a checkpoint at every second, pruning, a float teacher, an average, validation at the end."""
    (tmp_path / 'write_step_hook.py').write_text(HOOKS)
    float_file = tmp_path / 'float.pth'
    init_default_scope('mmdet')
    torch.manual_seed(0)
    torch.save({'state_dict': MODELS.build(tiny_mask_rcnn(type='TwoBranchSwin')).state_dict()}, float_file)
    distill = {'checkpoint': str(float_file), 'weight': 1.0}
    backbone = dict(type='TwoBranchSwin', drop_path_rate=0.5, low_ratios=0.5, quant=QUANT, distill=distill)
    cfg = tiny_config(
        tiny_coco,
        tmp_path / 'unused',
        model=tiny_mask_rcnn(**backbone),
        load_from=str(float_file),
        train_cfg={'_delete_': True, 'type': 'IterBasedTrainLoop', 'max_iters': 6, 'val_interval': 6},
        train_dataloader={'sampler': {'_delete_': True, 'type': 'InfiniteSampler'}},
        custom_imports={'imports': ['mixaq_mmdet', 'write_step_hook'], 'allow_failed_imports': False},
        custom_hooks=[
            {'type': 'ExactResumeHook'},
            {'type': 'CalibrationHook', 'num_images': 2},
            {'type': 'EMAHook', 'momentum': 0.1},
            {'type': 'WriteStepHook', 'folder': str(tmp_path)},
        ],
    )
    cfg.merge_from_dict(
        {
            'default_hooks.checkpoint': {'interval': 2, 'by_epoch': False},
            'log_processor.by_epoch': False,
            'visualizer.vis_backends': [{'type': 'LocalVisBackend'}, {'type': 'TensorboardVisBackend'}],
        }
    )
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


def shown_by_tensorboard(work_dir: Path, name: str) -> dict[int, float]:
    folder = next(iter(work_dir.glob('*/vis_data')))
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_a_killed_run_goes_on_with_the_ratios_of_the_uninterrupted_one(config_file, tmp_path):
    """kill -9 after the third update, then --resume from the checkpoint behind the second."""
    whole, interrupted = tmp_path / 'whole', tmp_path / 'interrupted'
    environment = {'PYTHONPATH': str(tmp_path)}
    run = run_tool('train.py', 'tiny.py', '--work-dir', whole, cwd=tmp_path, **environment)
    assert run.returncode == 0, run.stdout
    expected = written(tmp_path, 0, range(1, 7))
    assert [tuple(step['ratios']) for step in expected] == drawn(6)
    for name in SCALARS:
        scalars = logged(whole, name)
        assert sorted(scalars) == [1, 2, 3, 4, 5, 6]
        assert shown_by_tensorboard(whole, name) == pytest.approx(scalars, rel=1e-3)
    assert all(logged(whole, 'loss_distill').values())

    killer = Config.fromfile(config_file, import_custom_modules=False)
    killer.custom_hooks[-1].kill_after = 3
    killer.dump(tmp_path / 'killer.py')
    killed = run_tool('train.py', 'killer.py', '--work-dir', interrupted, cwd=tmp_path, **environment)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    for step in range(1, 7):
        (tmp_path / f'rank0_step{step}.pth').unlink()
    resumed = run_tool('train.py', 'tiny.py', '--work-dir', interrupted, '--resume', cwd=tmp_path, **environment)
    assert resumed.returncode == 0, resumed.stdout
    assert 'calibrated on' not in resumed.stdout
    for found, target in zip(written(tmp_path, 0, range(3, 7)), expected[2:], strict=True):
        assert found['ratios'] == target['ratios']
        for name, value in target['parameters'].items():
            torch.testing.assert_close(found['parameters'][name], value, rtol=1e-4, atol=1e-5)
    assert logged_losses(interrupted) == pytest.approx(logged_losses(whole), abs=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason='CPU ranks start only where no accelerator is visible')
def test_two_ranks_share_ratios_and_parameters(config_file, tmp_path):
    cfg = Config.fromfile(config_file, import_custom_modules=False)
    cfg.train_dataloader.batch_size = 1
    cfg.train_cfg.update(max_iters=3, val_interval=9)
    cfg.randomness = {'seed': 0, 'diff_rank_seed': True}
    cfg.dump(config_file)
    run = run_on_two_ranks(
        'train.py', 'tiny.py', '--work-dir', tmp_path / 'ranks', cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert run.returncode == 0, run.stdout
    first, second = written(tmp_path, 0, range(1, 4)), written(tmp_path, 1, range(1, 4))
    assert [tuple(step['ratios']) for step in first] == [tuple(step['ratios']) for step in second] == drawn(3)
    for name, value in first[-1]['parameters'].items():
        assert torch.equal(value, second[-1]['parameters'][name]), name
