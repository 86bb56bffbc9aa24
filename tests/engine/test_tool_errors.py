"""Errors of the user's end in one line and status 2; errors of ours keep their traceback."""

from __future__ import annotations

import argparse
import errno
import re
import shlex

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from tool_process import load_tool
from torch.utils.data import DataLoader, Dataset

from mixaq_mmdet.engine.calibration.run import kept_by_training
from mixaq_mmdet.engine.tool_errors import ToolError, describe, one_line_errors, quoted
from mixaq_mmdet.quantization import NotCalibratedError


def ending(error: BaseException, **flags: bool) -> ToolError:
    with pytest.raises(ToolError) as stop, one_line_errors(argparse.Namespace(**flags)):
        raise error
    return stop.value


def test_the_line_stands_on_stderr_and_the_status_is_two(capsys):
    stop = ending(ValueError('low_ratios has 3 numbers;\n  give 6'))
    assert (stop.code, str(stop)) == (2, 'error: low_ratios has 3 numbers; give 6')
    assert capsys.readouterr().err == 'error: low_ratios has 3 numbers; give 6\n'


@pytest.mark.parametrize('error', [ValueError('x'), KeyboardInterrupt(), NotCalibratedError('q')])
def test_traceback_shows_where_it_was_raised(error):
    with pytest.raises(type(error)), one_line_errors(argparse.Namespace(traceback=True)):
        raise error


@pytest.mark.parametrize('error', [TypeError('x'), RuntimeError('shapes'), KeyError('missing'), IndexError(3)])
def test_faults_of_ours_are_not_hidden(error):
    with pytest.raises(type(error)), one_line_errors(argparse.Namespace(traceback=False)):
        raise error


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (OSError(errno.ENOSPC, 'No space left on device', 'x.pth'), 'the disk is full'),
        (RuntimeError('[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0'), 'the disk is full'),
        (MemoryError(), '^error: there is not enough memory; free some memory, or use smaller images'),
        (OSError(errno.ENOMEM, 'Cannot allocate memory'), 'there is not enough memory'),
        (FileNotFoundError(errno.ENOENT, 'No such file', 'img/7.png'), r"'img/7\.png' is not there; check data_root"),
        (PermissionError(errno.EACCES, 'Permission denied', 'work'), r"Permission denied: 'work'"),
        (NotCalibratedError('patch_embed'), '^error: not calibrated: patch_embed'),
    ],
)
def test_what_a_user_can_mend_is_named(error, line):
    assert re.search(line, describe(error))


def test_an_allocation_that_fails_says_how_much_was_needed():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert f'not enough memory: {1 << 35} MiB more were needed at once' in describe(raised.value)


def test_a_name_that_the_locale_cannot_hold_is_explained():
    with pytest.raises(UnicodeEncodeError) as raised:
        'b\udcffx.png'.encode()
    assert 'LC_ALL=C.UTF-8' in describe(raised.value)


def test_an_unknown_type_in_a_config_is_one_line():
    with pytest.raises(KeyError) as raised:
        MODELS.build({'type': 'MaskRCNNN'})
    line = describe(raised.value)
    assert line.startswith('error: ')
    assert 'MaskRCNNN' in line
    assert '\\n' not in line


class Gone(Dataset):
    """A data set whose image has been deleted."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> bytes:
        with open('gone/000001.png', 'rb') as file:
            return file.read()


def test_what_a_worker_process_sends_on_is_its_last_line():
    with pytest.raises(FileNotFoundError) as raised:
        list(DataLoader(Gone(), num_workers=1))
    assert describe(raised.value) == "error: [Errno 2] No such file or directory: 'gone/000001.png'"


def test_an_interruption_says_what_is_kept(tmp_path):
    cfg = Config({'work_dir': str(tmp_path)})

    def shown() -> str:
        return describe(KeyboardInterrupt(), lambda: kept_by_training(cfg))

    assert shown() == 'interrupted'
    (tmp_path / 'epoch_3.pth').touch()
    assert 'with --resume: it goes on behind epoch_3.pth' in shown()
    (tmp_path / 'calibration_blocks').mkdir()
    for number in range(3):
        (tmp_path / 'calibration_blocks' / f'{number:03d}.pt').touch()
    assert shown() == 'interrupted; give the same command again: 3 blocks are kept'


def test_printed_commands_survive_any_file_name():
    words = ['python', 'tools/test.py', "work dirs/o'neil é.py", '$HOME.pth']
    assert shlex.split(quoted(*words)) == words


@pytest.mark.parametrize(
    ('edits', 'message'),
    [
        ({'model.backbone.low_ratios': [0.5, 0.5, 0.5]}, r'^error: .*low_ratios'),
        ({'model.backbone.lowratios': 0.5}, r'^error: .*lowratios'),
        ({'model.backbone.quant': {'method': 'RepQQ'}}, r'^error: .*quant\.method'),
        ({'model.type': 'MaskRCNNN'}, r'^error: .*MaskRCNNN'),
        ({'train_dataloader.dataset.ann_file': 'gone.json'}, r'^error: .*gone\.json'),
        ({'train_dataloader.dataset.data_prefix.img': 'nowhere/'}, r'^error: .*nowhere'),
    ],
)
def test_a_wrong_config_ends_a_training_in_one_line(tiny_cfg, tmp_path, edits, message):
    torch.manual_seed(0)
    tiny_cfg.model.backbone.update(type='TwoBranchSwin')
    tiny_cfg.merge_from_dict(edits)
    tiny_cfg.dump(tmp_path / 'tiny.py')
    with pytest.raises(ToolError, match=message) as stop:
        load_tool('train.py').main([str(tmp_path / 'tiny.py')])
    assert stop.value.code == 2
    assert 'Traceback' not in str(stop.value)
