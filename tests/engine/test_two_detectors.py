"""Models that hold two detectors, a student and a teacher: both are calibrated and stay in step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from tiny_detector import tiny_config
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator, quantized_backbones, uncalibrated
from mixaq_mmdet.engine.calibration.summary import summarize

QUANT = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}
FIELDS = ['sup', 'unsup_teacher', 'unsup_student']
PACK = {
    'type': 'PackDetInputs',
    'meta_keys': (
        *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        *('flip', 'flip_direction', 'homography_matrix'),
    ),
}


def semi_config(root: Path, work_dir: Path, **options) -> Config:
    """SoftTeacher on two-branch Faster R-CNNs: one labelled and one unlabelled image a step."""
    cfg = tiny_config(root, work_dir)
    detector = cfg.model
    detector.type = 'FasterRCNN'
    for name in ('mask_roi_extractor', 'mask_head'):
        del detector.roi_head[name]
    detector.backbone.update(type='TwoBranchSwin', quant=QUANT, low_ratios=0.5)
    detector.data_preprocessor.pop('pad_mask')
    flip = {'type': 'RandomFlip', 'prob': 0.5}
    load, dataset = {'type': 'LoadImageFromFile'}, cfg.train_dataloader.dataset
    branches = {'type': 'MultiBranch', 'branch_field': FIELDS}
    labelled, unlabelled = copy.deepcopy(dataset), copy.deepcopy(dataset)
    boxes = {'type': 'LoadAnnotations', 'with_bbox': True}
    labelled.pipeline = [load, boxes, flip, {**branches, 'sup': {'type': 'PackDetInputs'}}]
    resize = {'type': 'Resize', 'scale': (64, 64), 'keep_ratio': True}
    views = {'unsup_teacher': [resize, flip, PACK], 'unsup_student': [resize, flip, PACK]}
    unlabelled.pipeline = [load, {'type': 'LoadEmptyAnnotations'}, {**branches, **views}]
    cfg.val_dataloader.dataset.pipeline[2] = boxes
    cfg.val_evaluator.metric = 'bbox'
    semi = {'pseudo_label_initial_score_thr': 0.0, 'rpn_pseudo_thr': 0.0, 'cls_pseudo_thr': 0.0, 'reg_pseudo_thr': 9.0}
    cfg.model = {
        'type': 'SoftTeacher',
        'detector': detector,
        'data_preprocessor': {
            'type': 'MultiBranchDataPreprocessor',
            'data_preprocessor': detector.data_preprocessor,
        },
        'semi_train_cfg': {
            **semi,
            'freeze_teacher': True,
            'jitter_times': 2,
            'jitter_scale': 0.06,
            'unsup_weight': 4.0,
        },
        'semi_test_cfg': {'predict_on': 'teacher'},
    }
    cfg.train_dataloader = {
        'batch_size': 2,
        'num_workers': 0,
        'persistent_workers': False,
        'sampler': {'type': 'GroupMultiSourceSampler', 'batch_size': 2, 'source_ratio': [1, 1]},
        'dataset': {'type': 'ConcatDataset', 'datasets': [labelled, unlabelled]},
    }
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': 2, 'val_interval': 2}
    cfg.val_cfg = {'type': 'TeacherStudentValLoop'}
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)
    cfg.log_processor.by_epoch = False
    cfg.custom_hooks = [
        {'type': 'MeanTeacherHook', 'momentum': 0.25},
        {'type': 'CalibrationHook', 'num_images': 2},
        {'type': 'EMAHook', 'momentum': 0.5},
    ]
    cfg.merge_from_dict(options)
    return cfg


@pytest.fixture
def float_file(tiny_coco, tmp_path) -> str:
    """Weights of the plain detector that both begin with."""
    init_default_scope('mmdet')
    detector = semi_config(tiny_coco, tmp_path).model.detector
    detector.backbone.pop('quant')
    torch.manual_seed(0)
    model = MODELS.build(detector)
    model.init_weights()
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'float.pth')
    return str(tmp_path / 'float.pth')


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_semi_supervised_training(tiny_coco, float_file, tmp_path):
    cfg = semi_config(tiny_coco, tmp_path / 'work', load_from=float_file)
    runner = Runner.from_cfg(cfg)
    seen = {}

    def watch(runner) -> None:
        seen['student'], seen['teacher'] = tensors(runner.model.student), tensors(runner.model.teacher)

    calibration = next(hook for hook in runner.hooks if type(hook).__name__ == 'CalibrationHook')
    calibrate = calibration.before_train
    calibration.before_train = lambda runner: (calibrate(runner), watch(runner))
    runner.train()

    assert not uncalibrated(runner.model)
    assert seen['student'].keys() == seen['teacher'].keys()
    assert all(torch.equal(value, seen['teacher'][name]) for name, value in seen['student'].items())
    student, teacher = tensors(runner.model.student), tensors(runner.model.teacher)
    steps = [name for name in student if name.endswith('.step')]
    moved = [name for name in steps if not torch.equal(student[name], seen['student'][name])]
    assert moved
    for name in moved:  # the teacher follows, and lags
        assert not torch.equal(teacher[name], student[name])
        assert not torch.equal(teacher[name], seen['teacher'][name])
    buffers = [name for name, _ in runner.model.student.backbone.named_buffers()]
    assert all(torch.equal(student[f'backbone.{name}'], teacher[f'backbone.{name}']) for name in buffers)
    assert bool(runner.model.teacher.backbone.low_trained)

    assert not (tmp_path / 'work' / 'calibration_blocks').exists()

    averaged = two_detectors(tiny_coco)
    averaged.load_state_dict(torch.load(tmp_path / 'work' / 'iter_2.pth')['state_dict'])
    assert not uncalibrated(averaged)

    goes_on = {'resume': True, 'train_cfg.max_iters': 3, 'train_cfg.val_interval': 4}
    again = Runner.from_cfg(semi_config(tiny_coco, tmp_path / 'work', **goes_on))
    again.train()
    assert again.iter == 3


def two_detectors(tiny_coco, float_file=None) -> nn.Module:
    init_default_scope('mmdet')
    model = MODELS.build(semi_config(tiny_coco, Path('.')).model)
    if float_file is not None:
        model.load_state_dict(torch.load(float_file)['state_dict'], strict=False)
    return model


def test_two_sets_of_weights_are_calibrated_each_for_itself(tiny_coco, float_file):
    model = two_detectors(tiny_coco, float_file)
    with torch.no_grad():
        for parameter in model.teacher.backbone.parameters():
            parameter *= 1.5
    alone = copy.deepcopy(model.teacher)
    image = torch.randn(1, 3, 64, 64)
    ticks = []
    calibrator = Calibrator(model, tick=lambda: ticks.append(1))
    noise = calibrator.run([image])
    assert len(ticks) == calibrator.steps(1)
    Calibrator(alone).run([image])
    found, expected = tensors(model.teacher), tensors(alone)
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    lines = summarize(model, noise)
    assert {line.layer.split('.')[0] for line in lines} == {'student', 'teacher'}
    assert all(line.sqnr is not None for line in lines)


def test_only_what_is_not_calibrated_is(tiny_coco, float_file):
    model = two_detectors(tiny_coco, float_file)
    image = torch.randn(1, 3, 64, 64)
    Calibrator(model.student).run([image * 2])
    before = tensors(model.student)
    Calibrator(model).run([image])
    assert not uncalibrated(model)
    assert all(torch.equal(value, before[name]) for name, value in tensors(model.student).items())


def test_backbones_of_no_detector_are_refused_by_the_name_of_what_holds_them(tiny_coco):
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = quantized_backbones(two_detectors(tiny_coco))

    with pytest.raises(ValueError, match=r"Pair holds 2 quantized backbones, of which \['first', 'second'\]"):
        Calibrator(Pair())
