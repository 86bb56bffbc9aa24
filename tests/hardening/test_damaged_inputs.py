"""Damaged files and folders end in an error that names them and says what to do, with nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_backbone import backbone, images
from tiny_detector import tiny_config, write_tiny_coco
from tool_process import load_tool

from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.calibration.journal import BlockJournal, calibration_key
from mixaq_mmdet.engine.damaged_files import check_work_dir, read_json
from mixaq_mmdet.quantization.state import encode_config
from mixaq_mmdet.search.history import History
from mixaq_mmdet.search.layer_run import _stored
from mixaq_mmdet.search.run import Settings, latency_table
from mixaq_mmdet.search.space import Candidate

QUANT = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """A folder with data, a config and a calibrated checkpoint, none of them damaged; read only."""
    folder = tmp_path_factory.mktemp('whole')
    cfg = tiny_config(write_tiny_coco(folder / 'data'), folder / 'work_dir')
    cfg.model.backbone.update(type='TwoBranchSwin', quant=QUANT, drop_path_rate=0.0)
    cfg.train_cfg.max_epochs = 1
    cfg.dump(folder / 'tiny.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).eval()
    Calibrator(model.backbone).run([torch.randn(1, 3, 64, 64)])
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, folder / 'tiny.pth')
    return folder


@pytest.fixture
def place(whole, tmp_path) -> Path:
    """A copy to be damaged; its config reads the copy's data."""
    folder = tmp_path / 'place'
    shutil.copytree(whole, folder)
    text = (folder / 'tiny.py').read_text().replace(str(whole), str(folder))
    (folder / 'tiny.py').write_text(text)
    return folder


def tool(name: str, *arguments: object) -> None:
    load_tool(name).main([str(argument) for argument in arguments])


def fails(call: Callable[[], Any], *words: str) -> None:
    """``call`` ends in a ValueError, or in a tool's one line, that holds all ``words``."""
    with pytest.raises((ValueError, SystemExit)) as stop:
        call()
    text = str(stop.value)
    assert isinstance(stop.value, ValueError) or text.startswith('error: '), text
    for word in words:
        assert word in text, text


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _text(path: Path) -> None:
    path.write_text('<html><body>404 Not Found</body></html>')


def _executable(path: Path) -> None:
    torch.save({'state_dict': {'weight': torch.zeros(2)}, 'callback': Path}, path)


CHECKPOINTS = {
    'truncated': (_truncated, 'truncated or not a PyTorch checkpoint'),
    'without its end': (_without_the_end, 'truncated or not a PyTorch checkpoint'),
    'empty': (lambda path: path.write_bytes(b''), 'truncated or not a PyTorch checkpoint'),
    'an error page': (_text, 'truncated or not a PyTorch checkpoint'),
    'a picture': (
        lambda path: path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100)),
        'truncated or not a PyTorch checkpoint',
    ),
    'a zip of something else': (lambda path: _zip(path), 'truncated or not a PyTorch checkpoint'),
    'with code': (_executable, 'convert_checkpoint.py'),
    'a list': (lambda path: torch.save([torch.zeros(2)], path), 'holds a list'),
}


def _zip(path: Path) -> None:
    shutil.make_archive(str(path.with_suffix('')), 'zip', path.parent / 'data', 'images')
    path.with_suffix('.zip').replace(path)


@pytest.mark.parametrize(('damage', 'message'), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_files_that_are_no_checkpoints(place, damage, message):
    damage(place / 'tiny.pth')
    kept = (place / 'tiny.pth').read_bytes()
    fails(lambda: command_line.check_checkpoint(str(place / 'tiny.pth'), 'load_from'), 'load_from', 'tiny.pth', message)
    assert (place / 'tiny.pth').read_bytes() == kept


@pytest.mark.parametrize('name', ['test.py', 'search.py', 'deploy.py'])
def test_every_tool_looks_at_its_checkpoint_first(place, name):
    _truncated(place / 'tiny.pth')
    words = ['convert'] if name == 'deploy.py' else []
    more = ['-o', place / 'integer.pth'] if name == 'deploy.py' else []
    work_dir = ['--work-dir', place / 'made']
    fails(lambda: tool(name, *words, place / 'tiny.py', place / 'tiny.pth', *more, *work_dir), 'tiny.pth', 'truncated')
    assert not (place / 'made').exists()
    assert not (place / 'integer.pth').exists()


@pytest.mark.parametrize('how', ['load_from', '--resume'])
def test_a_training_does_not_start_from_a_torn_file(place, how):
    _truncated(place / 'tiny.pth')
    file = place / 'tiny.pth'
    arguments = ['--resume', file] if how == '--resume' else ['--cfg-options', f'load_from={file}']
    fails(lambda: tool('train.py', place / 'tiny.py', *arguments), how, 'tiny.pth', 'truncated')
    assert not (place / 'work_dir').exists()


def test_a_torn_last_checkpoint_names_itself_and_the_earlier_one_stays(place):
    work_dir = place / 'work_dir'
    work_dir.mkdir()
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        shutil.copy(place / 'tiny.pth', work_dir / name)
    _truncated(work_dir / 'epoch_2.pth')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    fails(lambda: tool('train.py', place / 'tiny.py', '--resume'), 'epoch_2.pth', 'an earlier one')
    assert (work_dir / 'epoch_1.pth').read_bytes() == (place / 'tiny.pth').read_bytes()


STATES = {
    'another method': ({'method': 'RepQ', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}, 'model.backbone.quant differs'),
    'a key of the future': ({**QUANT, 'spline': True}, 'spline'),
    'a damaged config': (None, "'quant_config' of the checkpoint is damaged"),
}


@pytest.mark.parametrize(('config', 'message'), STATES.values(), ids=STATES)
def test_quantized_files_that_do_not_fit(config, message):
    model = backbone(QUANT)
    state = model.state_dict()
    state['quant_config'] = torch.tensor([1, 2, 3], dtype=torch.uint8) if config is None else encode_config(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fails(lambda: backbone(QUANT).load_state_dict(state), message)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_of_another_architecture_and_of_no_backbone():
    fails(lambda: backbone().load_state_dict(backbone(embed_dims=16).state_dict()), 'another architecture')
    fails(lambda: backbone().load_state_dict({'fc.weight': torch.zeros(2, 2)}), 'convert_checkpoint.py')


def _edited(path: Path, edit: Callable[[dict], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


ANNOTATIONS = {
    'truncated': (_truncated, 'torn or not JSON'),
    'empty': (lambda path: path.write_text(''), 'torn or not JSON'),
    'a list': (lambda path: path.write_text('[]'), 'no COCO annotation file'),
    'without images': (lambda path: _edited(path, lambda content: content.pop('images')), "['images']"),
    'of no image': (lambda path: _edited(path, lambda content: content['images'].clear()), 'holds no image'),
    'of foreign images': (
        lambda path: _edited(path, lambda content: content['annotations'][0].update(image_id=99)),
        None,
    ),
}


@pytest.mark.parametrize(('damage', 'message'), ANNOTATIONS.values(), ids=ANNOTATIONS)
def test_annotation_files(place, damage, message):
    damage(place / 'data/annotations.json')
    arguments = [place / 'tiny.py', place / 'tiny.pth', '--work-dir', place / 'tested']
    if message is None:  # the host ignores what belongs to no image
        tool('test.py', *arguments)
    else:
        fails(lambda: tool('test.py', *arguments), 'ann_file', 'annotations.json', message)


@pytest.mark.parametrize('damage', ['missing', 'truncated'])
def test_a_picture_that_cannot_be_read_is_named(place, damage):
    picture = place / 'data/images/000002.png'
    picture.unlink() if damage == 'missing' else picture.write_bytes(picture.read_bytes()[:20])
    with pytest.raises((SystemExit, AssertionError), match=r'000002\.png'):
        tool('test.py', place / 'tiny.py', place / 'tiny.pth', '--work-dir', place / 'tested')


def test_a_work_dir_that_is_a_file(place):
    (place / 'taken').write_text('mine')
    fails(
        lambda: tool('train.py', place / 'tiny.py', '--work-dir', place / 'taken'),
        '--work-dir', 'taken', 'give another one',
    )  # fmt: skip
    assert (place / 'taken').read_text() == 'mine'


def test_a_work_dir_without_permission(tmp_path, monkeypatch):
    def refuse(**_: Any) -> None:
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('tempfile.TemporaryFile', refuse)
    fails(lambda: check_work_dir(tmp_path), 'cannot be written (Permission denied)')


def test_a_config_that_is_empty_or_broken(place):
    (place / 'tiny.py').write_text('')
    fails(lambda: tool('test.py', place / 'tiny.py', place / 'tiny.pth'), 'tiny.py', 'has no model')
    (place / 'tiny.py').write_text('a = 1\nmodel = dict(')
    broken = f"config '{place / 'tiny.py'}', line 2: '(' was never closed: model = dict("
    fails(lambda: tool('test.py', place / 'tiny.py', place / 'tiny.pth'), broken)
    (place / 'child.py').write_text("_base_ = ['./tiny.py']\n")
    inherited = f"config '{place / 'child.py'}', line 2 of a file in its _base_: '(' was never closed"
    fails(lambda: tool('test.py', place / 'child.py', place / 'tiny.pth'), inherited)
    (place / 'tiny.py').unlink()
    fails(lambda: tool('test.py', place / 'child.py', place / 'tiny.pth'), 'child.py', 'cannot be read', 'tiny.py')


class TestHistory:
    ABOUT = {'model': 'a'}
    DAMAGED = (
        b'{"low": [1]', b'\x00\xff\xfe', b'{}', b'5', b'{"low": 3, "prune": [0], "scores": {"map": 1}}',
        b'{"low": [1], "prune": [0], "scores": 5}', b'{"low": [1], "prune": [0], "scores": {"map": "x"}}',
        b'{"low": [1, 2], "prune": [0], "scores": {"map": 1}}',
    )  # fmt: skip

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        history = History(tmp_path / 'history.jsonl', self.ABOUT)
        for tenths in (1, 2, 3):
            history.add(Candidate((tenths,), (0,)), {'map': tenths / 10}, 1.0)
        return tmp_path / 'history.jsonl'

    def test_a_torn_last_line_is_cut_off_and_the_others_stay(self, path):
        path.write_bytes(path.read_bytes()[:-7])
        assert len(History(path, self.ABOUT, resume=True).scores) == 2
        assert len(path.read_text().splitlines()) == 3

    @pytest.mark.parametrize('line', DAMAGED)
    def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_cut(self, path, line):
        lines = path.read_bytes().splitlines()
        lines[2] = line
        path.write_bytes(b'\n'.join(lines) + b'\n')
        kept = path.read_bytes()
        fails(lambda: History(path, self.ABOUT, resume=True), 'history.jsonl', 'line 3 is damaged')
        assert path.read_bytes() == kept

    @pytest.mark.parametrize('line', [b'not a history', b'{"subject": 5}', b'[]'])
    def test_a_damaged_first_line_and_a_foreign_file(self, path, line):
        path.write_bytes(line + b'\n' + path.read_bytes())
        fails(lambda: History(path, self.ABOUT, resume=True), 'history.jsonl', 'line 1 is damaged', 'delete the file')

    def test_an_empty_file_starts_anew(self, path):
        path.write_bytes(b'')
        assert History(path, self.ABOUT, resume=True).scores == {}


@pytest.mark.parametrize('damage', [_truncated, lambda path: path.write_bytes(b''), lambda path: torch.save({}, path)])
def test_a_damaged_block_of_a_calibration_is_fitted_anew(tmp_path, damage):
    def calibrated() -> Any:
        model = backbone(QUANT)
        calibrator = Calibrator(model)
        calibrator.journal = BlockJournal(tmp_path, calibration_key(model, calibrator.configs, [1, 2], 0))
        calibrator.run(images())
        return model.state_dict()

    expected = calibrated()
    damage(tmp_path / '001.pt')
    found = calibrated()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    (tmp_path / 'key.txt').write_bytes(b'\xff\xfe')
    assert all(torch.equal(value, expected[name]) for name, value in calibrated().items())


def test_files_of_earlier_analyses(tmp_path):
    path = tmp_path / 'latency.json'
    path.write_text('{"shape": [64,')
    fails(lambda: read_json(path, 'delete it'), 'latency.json', 'torn or not JSON', 'delete it')
    path.write_text('{"other": 1}')
    resumed = Settings(Path('tiny.py'), Path('tiny.pth'), tmp_path, resume=True)
    fails(lambda: latency_table(None, (64, 64), resumed), 'latency.json', 'not a latency table', 'delete it')
    fails(lambda: _stored(path, 'importance', {'layer'}), '--importance', "holds no 'importance'")


def test_a_set_that_is_half_made_is_left_alone(tmp_path):
    (tmp_path / 'precious.txt').write_text('mine')
    with pytest.raises((ValueError, SystemExit)):
        tool('make_minicoco.py', '--out', tmp_path, '--overwrite', '--train', 4, '--val', 4, '--test', 4)
    assert (tmp_path / 'precious.txt').read_text() == 'mine'


def test_a_config_of_the_whole_folder_still_runs(whole, tmp_path):
    """What is damaged above runs when it is whole."""
    tool('test.py', whole / 'tiny.py', whole / 'tiny.pth', '--work-dir', tmp_path / 'tested')
    assert Config.fromfile(whole / 'tiny.py').model.backbone.quant == QUANT
