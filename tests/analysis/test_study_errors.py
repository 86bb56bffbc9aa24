"""tools/analyze.py and visualize.py: damaged inputs and places that cannot be written are one line, before the work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tool_process import load_tool
from two_branch_files import write_quantized_files

DAMAGED = Path('data/annotations.json')


@pytest.fixture(scope='module')
def whole(tiny_coco, tmp_path_factory) -> Path:
    """``config.py``, ``epoch_1.pth``, their set in ``data``, relative to where a command runs, and again in ``fog``."""
    folder = tmp_path_factory.mktemp('whole')
    config, _ = write_quantized_files(tiny_coco, folder)
    Path(config).write_text(Path(config).read_text().replace(str(tiny_coco), 'data'))
    shutil.copytree(tiny_coco, folder / 'data')
    (folder / 'fog/annotations').mkdir(parents=True)
    shutil.copy(tiny_coco / 'annotations.json', folder / 'fog/annotations/instances_val.json')
    shutil.copytree(tiny_coco / 'images', folder / 'fog/val')
    return folder


@pytest.fixture
def place(whole, tmp_path, monkeypatch) -> Path:
    """A copy of ``whole`` to work in."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(command: str) -> str:
    """How a command line ends; CONFIG and CKPT are the place's own."""
    name, *words = command.replace('CONFIG', 'config.py').replace('CKPT', 'epoch_1.pth').split()
    with pytest.raises(SystemExit) as stop:
        load_tool(f'{name}.py').main(words)
    message = str(stop.value)
    assert message.startswith('error: ')
    assert '\n' not in message
    return message


@pytest.mark.parametrize(
    ('command', 'field'),
    [
        ('analyze sensitivity CONFIG nowhere.pth --work-dir taken', '--work-dir'),
        ('analyze sensitivity CONFIG nowhere.pth --per-layer --work-dir taken', '--work-dir'),
        ('analyze sqnr CONFIG nowhere.pth --work-dir taken', '--work-dir'),
        ('analyze robustness CONFIG nowhere.pth --sets fog --work-dir taken', '--work-dir'),
        ('analyze importance CONFIG nowhere.pth --work-dir taken', '--work-dir'),
        ('analyze report . --checkpoint nowhere.pth -o taken/x.html', '-o'),
        ('analyze bops CONFIG --out taken/x.json', '--out'),
        ('analyze latency CONFIG --out taken/x.json', '--out'),
        ('visualize data/images/000001.png CONFIG nowhere.pth -o taken', '-o'),
    ],
)
def test_a_file_in_the_way_is_found_before_anything_is_loaded(place, command, field):
    (place / 'taken').write_text('mine')
    assert re.search(rf"error: {field}[ =]'taken\S*' cannot be written", error_of(command))
    assert (place / 'taken').read_text() == 'mine'


def test_markdown_lies_beside_a_json(place):
    assert "--out='x.md' is the name of the Markdown" in error_of('analyze bops CONFIG --out x.md')


@pytest.mark.parametrize(
    ('command', 'file', 'named'),
    [
        ('analyze sensitivity CONFIG CKPT', DAMAGED, 'test_dataloader.dataset.ann_file'),
        ('analyze sqnr CONFIG CKPT', DAMAGED, 'test_dataloader.dataset.ann_file'),
        ('analyze robustness CONFIG CKPT --sets fog', DAMAGED, 'test_dataloader.dataset.ann_file'),
        ('analyze robustness CONFIG CKPT --sets fog', Path('fog/annotations/instances_val.json'), '--sets fog: '),
        ('analyze report . -o x.html --config CONFIG --checkpoint CKPT', DAMAGED, 'test_dataloader.dataset.ann_file'),
    ],
)
def test_a_truncated_annotation_file_is_named(place, command, file, named):
    file.write_bytes(file.read_bytes()[:20])
    assert re.search(rf'error: {named}.*{file.name}. is torn or not JSON', error_of(command))


def test_a_missing_annotation_file_is_named(place):
    DAMAGED.unlink()
    assert "annotations.json' is missing" in error_of('analyze sqnr CONFIG CKPT')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('', 'give --sets DIR, or --ann-file FILE with --image-prefix DIR'),
        ('--ann-file a.json b.json --image-prefix a', '--ann-file names 2 sets and --image-prefix 1'),
        ('--sets fog --ann-file x/fog.json --image-prefix x', r"\['fog'\] stand for two"),
        ('--sets data', 'is not a COCO-style folder.*for other layouts give --ann-file and --image-prefix'),
        ('--ann-file gone.json --image-prefix x', r'--ann-file gone\.json: .*is missing'),
    ],
)
def test_sets_that_cannot_be_told_apart_or_found_are_named(place, words, message):
    assert re.search(message, error_of(f'analyze robustness CONFIG CKPT {words}'))


@pytest.mark.parametrize('damage', ['missing', 'text'])
@pytest.mark.parametrize(
    'command', ['analyze robustness CONFIG CKPT --sets fog', 'visualize fog/val/000002.png CONFIG CKPT']
)
def test_a_picture_that_cannot_be_read_is_named(place, command, damage):
    picture = Path('fog/val/000002.png')
    picture.unlink() if damage == 'missing' else picture.write_text('no image')
    message = 'is not a file' if damage == 'missing' else 'is damaged or not an image'
    assert re.search(rf'error: (picture|image) \S*{picture}. {message}', error_of(command))


@pytest.mark.parametrize(
    'command',
    [
        'analyze sqnr CONFIG CKPT',
        'analyze sensitivity CONFIG CKPT --ratios 0.5',
        'analyze report . -o x.html --config CONFIG --checkpoint CKPT',
    ],
)
def test_every_study_names_a_missing_picture(place, command):
    Path('data/images/000002.png').unlink()
    assert re.search(r'error: (picture|image) \S*000002\.png. is not a file', error_of(command))


def test_a_worker_process_names_no_file_but_the_error_does(place):
    """What comes back from a worker is text: the file's name is no attribute of it."""
    Path('fog/val/000002.png').unlink()
    workers = '--cfg-options test_dataloader.num_workers=1'
    message = error_of(f'analyze robustness CONFIG CKPT --sets fog {workers}')
    assert re.search(r"error: image '\S*fog/val/000002\.png' is not a file", message)


@pytest.mark.parametrize('shape', ['0 5', '-1 3'])
@pytest.mark.parametrize('command', ['bops', 'latency'])
def test_an_empty_shape_is_refused(place, command, shape):
    assert f'--shape {shape} has an empty side' in error_of(f'analyze {command} CONFIG --shape {shape}')


@pytest.mark.parametrize(
    ('command', 'keys'),
    [
        ('bops CONFIG --shape 64 64', {'per_layer', 'shape'}),
        ('latency CONFIG --shape 64 64 --rounds 1 --check 1 --seed 3', {'entries', 'checks', 'seed'}),
    ],
)
def test_a_result_says_where_it_comes_from(place, capsys, command, keys):
    load_tool('analyze.py').main([*command.replace('CONFIG', 'config.py').split(), '--out', 'out/found.json'])
    found = json.loads(Path('out/found.json').read_text())
    assert {'config', 'cfg_options', 'versions', 'device', *keys} <= set(found)
    text = Path('out/found.md').read_text()
    printed = capsys.readouterr().out
    assert f'mmdet {found["versions"]["mmdet"]}' in text
    for name, value in found['device'].items():
        assert f'{name} {value}' in text
        assert command.startswith('bops') or f'{name} {value}' in printed
    assert ('Seed: 3.' in text) == ('seed' in keys)
    assert len(re.findall(r'\n\| ---:? \|', text)) == 1, 'a table'
