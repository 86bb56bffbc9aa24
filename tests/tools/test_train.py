"""tools/train.py: the kill and the resume, the same config under mmdet's own tool, and errors that name the flag."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_detector import tiny_config, tiny_mask_rcnn
from tool_process import load_tool, logged_losses, run_tool

from mixaq_mmdet.engine import command_line

STOCK_TRAIN = Path(find_spec('mmdet').origin).parent / '.mim' / 'tools' / 'train.py'
KILL_HOOK = """
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillHook(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 2:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def train_cfg_file(tiny_coco, tmp_path) -> Path:
    """Three epochs of two iterations, validation after each, DropPath strong enough that its randomness shows."""
    cfg = tiny_config(
        tiny_coco,
        tmp_path / 'unused',
        model=tiny_mask_rcnn(drop_path_rate=0.5),
        custom_hooks=[{'type': 'ExactResumeHook'}],
    )
    cfg.train_cfg.update(max_epochs=3, val_interval=1)
    cfg.dump(tmp_path / 'tiny.py')
    return tmp_path / 'tiny.py'


def test_killed_run_resumes_as_if_uninterrupted_under_the_stock_tool(train_cfg_file, tmp_path):
    """kill -9 in the second epoch, then --resume; mmdet's own tool runs the same file without interruption."""
    (tmp_path / 'kill_hook.py').write_text(KILL_HOOK)
    killer = Config.fromfile(train_cfg_file)
    killer.custom_imports.imports.append('kill_hook')
    killer.custom_hooks.append({'type': 'KillHook'})
    killer.dump(tmp_path / 'killer.py')

    work_dir = tmp_path / 'interrupted'
    killed = run_tool('train.py', 'killer.py', '--work-dir', work_dir, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert sorted(path.name for path in work_dir.glob('*.pth')) == ['epoch_1.pth']
    resumed = run_tool('train.py', 'tiny.py', '--work-dir', work_dir, '--resume', cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout
    assert 'random states restored' in resumed.stdout

    stock = run_tool(str(STOCK_TRAIN), 'tiny.py', '--work-dir', tmp_path / 'whole', cwd=tmp_path)
    assert stock.returncode == 0, stock.stdout
    expected = logged_losses(tmp_path / 'whole')
    assert sorted(expected) == [1, 2, 3, 4, 5, 6]
    assert logged_losses(work_dir) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.py'], "error: config 'nowhere.py' is not a file"),
        (['CONFIG', '--resume', 'nowhere.pth'], "error: --resume 'nowhere.pth' is not a file"),
        (['CONFIG', '--amp'], 'error: --amp needs an accelerator'),
        (['CONFIG', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr={}'], 'auto_scale_lr.base_batch_size'),
        (['CONFIG', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'], 'auto_scale_lr.base_batch_size'),
        (['CONFIG', '--launcher', 'pytorch'], "error: launcher='pytorch' needs the environment variable RANK"),
    ],
)
def test_user_errors_are_one_line(tiny_cfg, tmp_path, monkeypatch, arguments, message):
    config = str(tmp_path / 'tiny.py')
    tiny_cfg.dump(config)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr(command_line, 'get_device', lambda: 'cpu')
    with pytest.raises(SystemExit) as stop:
        load_tool('train.py').main([config if argument == 'CONFIG' else argument for argument in arguments])
    assert message in str(stop.value)


def test_a_model_that_nothing_calibrates_ends_in_one_line(tiny_cfg, tmp_path):
    tiny_cfg.model.backbone.update(type='TwoBranchSwin', quant={'method': 'LSQ'})
    tiny_cfg.dump(tmp_path / 'tiny.py')
    with pytest.raises(SystemExit) as stop:
        load_tool('train.py').main([str(tmp_path / 'tiny.py')])
    text = str(stop.value)
    assert text.startswith('error: not calibrated: ')
    for remedy in ('set load_from', 'CalibrationHook', 'PTQLoop'):
        assert remedy in text


def test_resume_without_a_checkpoint_starts_the_run_as_configured(tiny_cfg, tmp_path, capsys):
    """The pretrained weights must not get lost on the way: a stock --resume drops load_from here."""
    tiny_cfg.load_from = 'pretrained.pth'
    command_line.apply_resume(tiny_cfg, 'auto')
    assert (tiny_cfg.resume, tiny_cfg.load_from) == (False, 'pretrained.pth')
    assert 'starts from the beginning' in capsys.readouterr().out


def test_resume_finds_the_checkpoint_of_a_moved_folder(tiny_cfg, tmp_path):
    work_dir = Path(tiny_cfg.work_dir)
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text('/old/place/epoch_3.pth')
    with pytest.raises(ValueError, match='last_checkpoint names'):
        command_line.apply_resume(tiny_cfg, 'auto')
    torch.save({'state_dict': {}}, work_dir / 'epoch_3.pth')
    command_line.apply_resume(tiny_cfg, 'auto')
    assert (tiny_cfg.resume, tiny_cfg.load_from) == (True, str(work_dir / 'epoch_3.pth'))


def test_amp_and_lr_scaling_reach_the_config(tiny_cfg, monkeypatch):
    monkeypatch.setattr(command_line, 'get_device', lambda: 'cuda')
    tiny_cfg.optim_wrapper.constructor = 'OurConstructor'
    command_line.apply_amp(tiny_cfg)
    command_line.apply_auto_scale_lr(tiny_cfg)
    wrapper = tiny_cfg.optim_wrapper
    assert (wrapper.type, wrapper.loss_scale, wrapper.constructor) == ('AmpOptimWrapper', 'dynamic', 'OurConstructor')
    assert tiny_cfg.auto_scale_lr.enable is True


def test_flags_are_those_of_openmmlab(capsys):
    with pytest.raises(SystemExit) as stop:
        load_tool('train.py').main(['--help'])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ('--work-dir', '--resume', '--amp', '--cfg-options', '--launcher', '--auto-scale-lr'):
        assert flag in shown
