"""tools/test.py: metrics, raw predictions, pictures, test-time augmentation."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from tool_process import load_tool, run_tool


@pytest.fixture
def test_files(tiny_cfg, tmp_path) -> tuple[Path, Path]:
    """A config file and a checkpoint of random weights."""
    tiny_cfg.dump(tmp_path / 'tiny.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(tiny_cfg.model)
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'tiny.pth')
    return tmp_path / 'tiny.py', tmp_path / 'tiny.pth'


def test_predictions_and_pictures(test_files, tmp_path):
    arguments = ('--out', 'predictions.pkl', '--show-dir', 'pictures', '--work-dir', 'work')
    process = run_tool('test.py', *test_files, *arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stdout
    assert 'coco/bbox_mAP' in process.stdout
    assert 'coco/segm_mAP' in process.stdout
    predictions = pickle.loads((tmp_path / 'predictions.pkl').read_bytes())
    assert [prediction['img_id'] for prediction in predictions] == [1, 2, 3, 4]
    assert {'bboxes', 'scores', 'labels', 'masks'} <= set(predictions[0]['pred_instances'])
    assert len(list((tmp_path / 'work').glob('*/pictures/*.png'))) == 4


def test_flip_augmentation_of_a_config_that_has_none(test_files, tmp_path):
    without_masks = ('--cfg-options', 'model.roi_head.mask_head=None', 'test_evaluator.metric=bbox')
    process = run_tool('test.py', *test_files, '--tta', *without_masks, cwd=tmp_path)
    assert process.returncode == 0, process.stdout
    assert 'the test pipeline and its horizontal flip are used' in process.stdout
    assert 'coco/bbox_mAP' in process.stdout
    assert (tmp_path / 'work_dir').is_dir()


def quantized(test_files: tuple[Path, Path], more: str = '') -> str:
    """The config of ``test_files`` with a quantized backbone and without masks, as a file beside it."""
    config = test_files[0].with_name('quantized.py')
    config.write_text(
        f"""_base_ = ['{test_files[0]}']
model = dict(backbone=dict(type='TwoBranchSwin', quant=dict(method='MinMax')), roi_head=dict(mask_head=None))
test_evaluator = dict(metric='bbox')
{more}
"""
    )
    return str(config)


def test_an_uncalibrated_model_ends_in_one_line(test_files):
    with pytest.raises(SystemExit, match=r'^error: not calibrated: '):
        load_tool('test.py').main([quantized(test_files), str(test_files[1])])


def test_augmented_images_are_nothing_to_calibrate_on(test_files):
    config = quantized(test_files, "custom_hooks = [dict(type='CalibrationHook')]")
    with pytest.raises(SystemExit, match='--tta: the checkpoint is not calibrated'):
        load_tool('test.py').main([config, str(test_files[1]), '--tta'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.pth'], "error: checkpoint 'nowhere.pth' is not a file"),
        (['CHECKPOINT', '--out', 'predictions.json'], "error: --out 'predictions.json' must end in .pkl"),
        (['CHECKPOINT', '--tta'], 'error: --tta: DetTTAModel merges boxes only'),
        (['CHECKPOINT', '--show', '--cfg-options', 'default_hooks.visualization=None'], 'visualization'),
    ],
)
def test_user_errors_are_one_line(test_files, arguments, message):
    main = load_tool('test.py').main
    config, checkpoint = (str(path) for path in test_files)
    with pytest.raises(SystemExit) as stop:
        main([config, *(checkpoint if argument == 'CHECKPOINT' else argument for argument in arguments)])
    assert message in str(stop.value)
