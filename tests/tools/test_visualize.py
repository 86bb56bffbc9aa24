"""tools/visualize.py: the pictures of one image, and errors that name the flag."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from tool_process import load_tool
from two_branch_files import write_quantized_files, write_two_branch_files

LAYER = 'stages.0.blocks.0.ffn.layers.1'


@pytest.fixture(scope='module')
def files(tiny_coco, tmp_path_factory) -> dict[str, str]:
    """An image, a quantized config with its checkpoint, and a float checkpoint."""
    config, checkpoint = write_quantized_files(tiny_coco, tmp_path_factory.mktemp('quantized'))
    _, plain = write_two_branch_files(tiny_coco, tmp_path_factory.mktemp('float'))
    image = sorted((tiny_coco / 'images').glob('*.png'))[0]
    return {'IMAGE': str(image), 'CONFIG': config, 'CHECKPOINT': checkpoint, 'FLOAT': plain}


def visualize(files: dict[str, str], *arguments: object) -> None:
    load_tool('visualize.py').main([files.get(str(argument), str(argument)) for argument in arguments])


def test_every_picture_is_written_and_named(files, tmp_path, capsys):
    options = ('--float', 'FLOAT', '--layer', LAYER, '--score-thr', 0)
    visualize(files, 'IMAGE', 'CONFIG', 'CHECKPOINT', '-o', tmp_path / 'seen', *options)
    written = [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith('.png')]
    assert [path.name for path in written] == ['window_map.png', 'scores.png', 'detections.png', 'histogram.png']
    for path in written:
        picture = cv2.imread(str(path))
        assert picture.std() > 10, f'{path.name} is empty'
    height, width = cv2.imread(str(tmp_path / 'seen/detections.png')).shape[:2]
    assert width > 1.5 * height, 'the float model stands beside the quantized one'


def test_one_model_without_a_layer(files, tmp_path):
    visualize(files, 'IMAGE', 'CONFIG', 'CHECKPOINT', '-o', tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['detections.png', 'scores.png', 'window_map.png']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.png', 'CONFIG', 'CHECKPOINT'], "error: image 'nowhere.png' is not a file"),
        (['IMAGE', 'CONFIG', 'nowhere.pth'], "error: checkpoint 'nowhere.pth' is not a file"),
        (['IMAGE', 'CONFIG', 'CHECKPOINT', '--layer', 'fc9'], "error: --layer 'fc9' is no quantized activation"),
        (['IMAGE', 'CONFIG', 'FLOAT'], 'error: not calibrated: patch_embed'),
        (['IMAGE', 'CONFIG', 'CHECKPOINT', '--float', 'CHECKPOINT'], 'holds a quantized model'),
    ],
)
def test_user_errors_are_one_line(files, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stop:
        visualize(files, *arguments, '-o', tmp_path)
    assert message in str(stop.value.code)
