"""tools/deploy.py export and tools/run_onnx.py: from a checkpoint to objects on a picture, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_detector import tiny_config, tiny_mask_rcnn, two_stages

from tools import run_onnx
from tools.deploy import main

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

BACKBONE = dict(type='TwoBranchSwin', low_ratios=0.4, prune_ratios=0.2)
TOOL = Path(run_onnx.__file__)


@pytest.fixture(scope='module')
def exported(tiny_coco, tmp_path_factory):
    """(folder with config.py, float.pth, portrait and landscape files; the detector): float, windows in every tier."""
    folder = tmp_path_factory.mktemp('exported')
    init_default_scope('mmdet')
    cfg = tiny_config(tiny_coco, folder / 'work', model=two_stages(tiny_mask_rcnn(**BACKBONE)))
    cfg.dump(folder / 'config.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for path, parameter in model.named_parameters():
        if ('rpn' in path or 'head' in path) and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, folder / 'float.pth')
    export(folder, '--shape', '64', '64', '--shape', '64', '96', '--images', '1', '--evaluate', '2')
    detector = init_detector(Config.fromfile(folder / 'config.py'), str(folder / 'float.pth'), 'random', 'cpu')
    return folder, detector


def export(folder, *options, name='model.onnx'):
    paths = [str(folder / file) for file in ('config.py', 'float.pth')]
    main(['export', *paths, '-o', str(folder / name), '--no-times', *options])


def picture(folder, height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (9, 9), 0)
    cv2.imwrite(str(folder / f'{height}x{width}.png'), image)
    return image


@pytest.mark.parametrize('size', [(64, 64), (128, 128)], ids=str)
def test_objects_are_those_of_inference_detector(exported, size):
    folder, detector = exported
    image = picture(folder, *size)
    expected = inference_detector(detector, image).pred_instances
    found, _ = run_onnx.detect(image, [run_onnx.load(folder / 'model-64x64.onnx')], score=0.0)
    assert len(found) == len(expected) > 3
    for ours, box, label, mask in zip(found, expected.bboxes, expected.labels, expected.masks, strict=True):
        assert ours.label == int(label)
        np.testing.assert_allclose(ours.box, box.numpy(), atol=0.1)
        assert (ours.mask != mask.numpy()).mean() < 0.01


def test_each_image_takes_the_smallest_file_that_it_fits_into(exported):
    folder, _ = exported
    models = [run_onnx.load(folder / f'model-{name}.onnx') for name in ('64x96', '64x64')]
    assert run_onnx.choose(models, (64, 60)).facts['shape'] == [64, 64]
    assert run_onnx.choose(models, (50, 90)).facts['shape'] == [64, 96]
    with pytest.raises(ValueError, match='fits into none of 64x96, 64x64'):
        run_onnx.choose(models, (90, 64))


def test_report_lies_beside_the_file_and_warns_of_unusual_shapes(exported, capsys):
    folder, _ = exported
    assert (folder / 'model-64x96.json').is_file()
    text = (folder / 'model-64x96.md').read_text()
    assert 'no image of the test pipeline has shape (64, 96); usual ones are 64 64' in text
    assert 'WARNING' not in (folder / 'model-64x64.md').read_text()


def test_both_models_are_evaluated_alike(exported):
    folder, _ = exported
    precision = json.loads((folder / 'model-64x64.json').read_text())['precision']
    assert set(precision) == {'coco/bbox_mAP', 'coco/segm_mAP'}
    for values in precision.values():
        assert values['exported'] == pytest.approx(values['simulated'], abs=0.3)


def test_script_needs_neither_torch_nor_mm(exported):
    folder, _ = exported
    picture(folder, 64, 64)
    code = (
        'import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__"); '
        'bad = {"torch", "mmdet", "mmengine", "mmcv", "mixaq_mmdet"} & set(sys.modules); assert not bad, bad'
    )
    options = [
        str(folder / 'model-64x64.onnx'),
        str(folder / '64x64.png'),
        '--out',
        str(folder / 'out'),
        '--score',
        '0',
    ]
    done = subprocess.run([sys.executable, '-c', code, str(TOOL), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'skipped' in done.stdout
    assert cv2.imread(str(folder / 'out' / '64x64.png')).shape == (64, 64, 3)


def test_foreign_files_end_in_one_line(tmp_path):
    (tmp_path / 'x.png').write_text('')
    for arguments, message in (
        ([str(tmp_path / 'missing.onnx'), 'x.png'], 'is not a file'),
        ([str(tmp_path / 'missing.onnx') + ',other', 'x.png'], 'is not a file'),
    ):
        with pytest.raises(SystemExit, match=message):
            run_onnx.main(arguments)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--evaluate', '2', '--bytes'], '--evaluate compares on normalised images'),
        (['--evaluate', '2', '--scope', 'neck'], '--evaluate needs detections'),
        (['--evaluate', '2', '--target', 'tensorrt'], 'tensorrt does not run here'),
        (['--evaluate', '-1'], "'-1' must be a whole number"),
        (['--images', '-1'], "'-1' must be a whole number"),
        (['--shape', '0', '64'], 'must be two whole numbers'),
    ],
    ids=str,
)
def test_what_cannot_be_is_named_before_anything_is_written(options, message, exported, capsys):
    folder, _ = exported
    with pytest.raises(SystemExit):
        export(folder, *options, name='refused.onnx')
    assert message in capsys.readouterr().err
    assert not list(folder.glob('refused*'))


def test_a_path_that_is_none_is_refused(exported, capsys):
    folder, _ = exported
    with pytest.raises(SystemExit):
        export(folder, name='model.pth')
    assert 'must end in .onnx' in capsys.readouterr().err
