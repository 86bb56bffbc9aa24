"""The launch scripts: two gloo ranks train and resume, and every script says how it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forked import free_port
from tiny_detector import tiny_config, tiny_mask_rcnn
from tool_process import logged_losses, run_on_two_ranks, run_tool


@pytest.fixture
def two_epoch_config(tiny_coco, tmp_path) -> Path:
    cfg = tiny_config(
        tiny_coco,
        tmp_path / 'unused',
        model=tiny_mask_rcnn(drop_path_rate=0.5),
        custom_hooks=[{'type': 'ExactResumeHook'}],
        randomness={'seed': 0, 'diff_rank_seed': True},
    )
    cfg.train_dataloader.batch_size = 1
    cfg.dump(tmp_path / 'tiny.py')
    return tmp_path / 'tiny.py'


@pytest.mark.skipif(torch.cuda.is_available(), reason='CPU ranks start only where no accelerator is visible')
def test_two_cpu_ranks_train_validate_and_resume(two_epoch_config, tmp_path):
    """Each rank draws its own DropPath and flips; a resume gives each its own states back."""
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    first = run_tool('dist_train.sh', 'tiny.py', '2', '--work-dir', whole, cwd=tmp_path, PORT=free_port())
    assert first.returncode == 0, first.stdout
    assert 'GPU number: 2' in first.stdout
    assert 'coco/segm_mAP' in first.stdout
    losses = logged_losses(whole)
    assert sorted(losses) == [1, 2, 3, 4]

    flags = ('--work-dir', resumed, '--resume', whole / 'epoch_1.pth', '--cfg-options', 'train_cfg.val_interval=9')
    second = run_on_two_ranks('train.py', 'tiny.py', *flags, cwd=tmp_path)
    assert second.returncode == 0, second.stdout
    assert logged_losses(resumed) == pytest.approx({step: losses[step] for step in (3, 4)}, abs=1e-4)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_scripts_say_how_they_are_used(script, tmp_path):
    shown = run_tool(script, cwd=tmp_path)
    assert shown.returncode == 2
    assert f'tools/{script}' in shown.stdout
    assert 'CONFIG' in shown.stdout


def test_arguments_with_blanks_reach_the_tool_unsplit(tmp_path):
    """A stub interpreter shows what dist_test.sh and slurm_train.sh would run."""
    (tmp_path / 'interpreter').write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    (tmp_path / 'srun').write_text('#!/bin/sh\nfor word in "$@"; do echo "<$word>"; done\n')
    for name in ('interpreter', 'srun'):
        (tmp_path / name).chmod(0o755)
    option = 'test_pipeline=[dict(type="A b")]'
    environment = {'PYTHON': str(tmp_path / 'interpreter'), 'PORT': '29777'}
    shown = run_tool('dist_test.sh', 'c.py', 'c.pth', '3', '--cfg-options', option, cwd=tmp_path, **environment)
    assert f'<{option}>' in shown.stdout
    assert '<--nproc_per_node=3>' in shown.stdout
    assert '<--master_port=29777>' in shown.stdout

    path = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'GPUS': '2', 'SRUN_ARGS': '--qos=high --exclusive'}
    shown = run_tool('slurm_train.sh', 'part', 'job', 'c.py', 'work', '--cfg-options', option, cwd=tmp_path, **path)
    words = shown.stdout.splitlines()
    for word in ('<--gres=gpu:2>', '<--ntasks=2>', '<--qos=high>', '<--exclusive>', '<--work-dir=work>', f'<{option}>'):
        assert word in words, shown.stdout
