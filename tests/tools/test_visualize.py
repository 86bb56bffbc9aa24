"""tools/visualize.py: the pictures of one image, and errors that name the flag."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_process import load_tool
from two_branch_files import write_quantized_files, write_two_branch_files

from mixaq_mmdet.analysis import visualization
from mixaq_mmdet.analysis.inspection import inspect
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.quantization import Quantizer

LAYER = 'stages.0.blocks.0.ffn.layers.1'


@pytest.fixture(scope='module')
def files(tiny_coco, tmp_path_factory) -> dict[str, str]:
    """An image, a quantized config with its checkpoint, and a float checkpoint."""
    config, checkpoint = write_quantized_files(tiny_coco, tmp_path_factory.mktemp('quantized'))
    float_config, plain = write_two_branch_files(tiny_coco, tmp_path_factory.mktemp('float'))
    image = sorted((tiny_coco / 'images').glob('*.png'))[0]
    return {
        'IMAGE': str(image),
        'CONFIG': config,
        'CHECKPOINT': checkpoint,
        'FLOAT': plain,
        'FLOAT_CONFIG': float_config,
    }


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


@pytest.fixture
def shown(monkeypatch) -> dict:
    """What the picture of detections is drawn from: models by name, and a caption."""
    seen: dict = {}
    draw = visualization.draw_detections

    def spy(figure, image, found, classes, threshold, caption):
        seen.update(models=found, caption=caption)
        draw(figure, image, found, classes, threshold, caption)

    monkeypatch.setattr(visualization, 'draw_detections', spy)
    return seen


@pytest.mark.parametrize(
    ('words', 'models'),
    [
        (('CONFIG', 'CHECKPOINT'), ['quantizers off', 'this model']),
        (('CONFIG', 'CHECKPOINT', '--float', 'FLOAT'), ['float', 'this model']),
        (('FLOAT_CONFIG', 'FLOAT'), ['this model']),
        (('FLOAT_CONFIG', 'FLOAT', '--float', 'FLOAT'), ['float', 'this model']),
    ],
)
def test_a_float_model_stands_beside_a_quantized_one(files, tmp_path, shown, words, models):
    visualize(files, 'IMAGE', *words, '-o', tmp_path)
    assert list(shown['models']) == models
    assert ('the same weights' in shown['caption']) == ('quantizers off' in models)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['detections.png', 'scores.png', 'window_map.png']
    height, width = cv2.imread(str(tmp_path / 'detections.png')).shape[:2]
    assert (width > 1.5 * height) == (len(models) == 2)


def test_quantizers_off_is_the_float_model_of_the_same_weights(files):
    cfg = Config.fromfile(files['CONFIG'])
    detector = load_detector(cfg, files['CHECKPOINT'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        plain = MODELS.build(visualization.float_config(cfg).model).eval()
    weights = detector.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    plain.cfg, plain.dataset_meta = detector.cfg, detector.dataset_meta
    found = visualization.quantizers_off(detector, files['IMAGE']).sample.pred_instances
    expected = inspect(plain, files['IMAGE']).sample.pred_instances
    rounded = inspect(detector, files['IMAGE']).sample.pred_instances
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=1e-4, atol=1e-3)
    assert not torch.equal(rounded.scores, expected.scores), 'and rounds again behind it'
    assert detector.backbone.low_ratios == (0.5,) * 4
    assert {module.mode for module in detector.modules() if isinstance(module, Quantizer)} == {'quantize'}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.png', 'CONFIG', 'CHECKPOINT'], "error: image 'nowhere.png' is not a file"),
        (['IMAGE', 'CONFIG', 'nowhere.pth'], "error: checkpoint 'nowhere.pth' is not a file"),
        (['IMAGE', 'CONFIG', 'CHECKPOINT', '--layer', 'fc9'], "error: --layer 'fc9' is not a quantized activation"),
        (['IMAGE', 'CONFIG', 'FLOAT'], 'error: not calibrated: patch_embed'),
        (['IMAGE', 'CONFIG', 'CHECKPOINT', '--float', 'CHECKPOINT'], 'holds a quantized model'),
    ],
)
def test_user_errors_are_one_line(files, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stop:
        visualize(files, *arguments, '-o', tmp_path)
    assert message in str(stop.value)
