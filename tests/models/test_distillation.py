"""Distillation: what the loss is, where it arrives, and that the teacher is nowhere in the model."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_backbone import backbone, images
from tiny_detector import tiny_mask_rcnn

from mixaq_mmdet.deploy.files import integer_config
from mixaq_mmdet.engine import start_distillation
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.hooks import DistillationHook
from mixaq_mmdet.models.distillation import LOSS_NAME, relative_error
from mixaq_mmdet.registry import MODELS

QUANT = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}
BATCH = torch.cat(images())


@pytest.fixture
def teacher_file(tmp_path) -> str:
    """A float backbone as part of a detector's checkpoint."""
    weights = {f'backbone.{name}': value for name, value in backbone(seed=1).state_dict().items()}
    path = str(tmp_path / 'float.pth')
    torch.save({'state_dict': {**weights, 'neck.weight': torch.ones(1)}}, path)
    return path


class Head(torch.nn.Module):
    """The smallest detector: losses in a dict."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.backbone = backbone(drop_path_rate=0.0, **options)

    def forward(self, inputs, mode='loss'):
        outputs = self.backbone(inputs)
        return {'loss_task': outputs[0].mean()} if mode == 'loss' else outputs


def student(teacher: str, weight: float = 2.0, quant=None) -> Head:
    net = Head(distill={'checkpoint': teacher, 'weight': weight}, quant=quant)
    if quant is not None:
        Calibrator(net).run(images())
    start_distillation(net)
    return net.train()


def test_the_loss_is_the_weighted_relative_error(teacher_file):
    net = student(teacher_file)
    losses = {name: loss.detach() for name, loss in net(BATCH).items()}
    with torch.no_grad():
        outputs, targets = backbone()(BATCH), backbone(seed=1)(BATCH)
    expected = [
        float((out[i] - target[i]).square().sum() / target[i].square().sum())
        for out, target in zip(outputs, targets, strict=True)
        for i in range(len(BATCH))
    ]
    assert float(losses[LOSS_NAME]) == pytest.approx(2 * sum(expected) / len(expected), rel=1e-4)
    assert 'loss_task' in losses
    assert net.backbone.distiller.take() is None, 'a loss is taken once'


def test_only_the_student_learns(teacher_file):
    net = student(teacher_file, quant=QUANT)
    teacher = net.backbone.distiller._teacher
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        loss = net(BATCH)[LOSS_NAME]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_is_outside_the_model(teacher_file):
    net, plain = student(teacher_file), Head()
    assert list(net.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in net.named_modules()] == [name for name, _ in plain.named_modules()]
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in plain.named_parameters()]
    net(BATCH)
    twin = copy.deepcopy(net)  # as EMAHook does, in the middle of training
    assert twin.backbone.distiller._teacher is None


def test_evaluation_does_without_the_teacher(teacher_file):
    net = Head(distill={'checkpoint': 'not here.pth', 'weight': 1.0}).eval()
    net(BATCH)
    with torch.no_grad():
        net.train()(BATCH)
    with pytest.raises(ValueError, match=r'nothing takes its loss; add default_hooks=.*start_distillation'):
        net(BATCH)


def test_a_detector_trains_with_it(tmp_path):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    plain = MODELS.build(tiny_mask_rcnn(type='TwoBranchSwin'))
    torch.save(plain.state_dict(), tmp_path / 'float.pth')
    config = tiny_mask_rcnn(type='TwoBranchSwin', distill={'checkpoint': str(tmp_path / 'float.pth'), 'weight': 1.0})
    detector = MODELS.build(config)
    DistillationHook().before_train(SimpleNamespace(model=detector))
    data = detector.data_preprocessor(
        demo_mm_inputs(1, image_shapes=[(3, 64, 64)], num_items=[2], num_classes=3, with_mask=True), True
    )
    losses = detector.train()(**data, mode='loss')
    assert {'loss_cls', LOSS_NAME} <= set(losses)
    total, logged = detector.parse_losses(losses)
    assert LOSS_NAME in logged
    total.backward()


def test_a_converted_backbone_has_no_teacher():
    cfg = Config({'model': tiny_mask_rcnn(type='TwoBranchSwin', distill={'checkpoint': 'float.pth', 'weight': 1.0})})
    assert 'distill' not in integer_config(cfg).model.backbone


def test_identical_maps_have_no_error():
    maps = [torch.ones(2, 3, 4, 4), torch.zeros(2, 6, 2, 2)]
    assert relative_error(maps, maps) == 0


@pytest.mark.parametrize(
    ('distill', 'message'),
    [
        ('float.pth', r"distill='float\.pth' must be dict\(checkpoint="),
        ({'checkpoint': 'float.pth'}, r'must be dict\(checkpoint='),
        ({'checkpoint': 'float.pth', 'weight': 1, 'layers': 3}, r'must be dict\(checkpoint='),
        ({'checkpoint': None, 'weight': 1}, r'distill\.checkpoint=None must name'),
        ({'checkpoint': 'float.pth', 'weight': 0}, r'distill\.weight=0 must be a number above 0'),
        ({'checkpoint': 'float.pth', 'weight': True}, r'distill\.weight=True'),
        ({'checkpoint': 'float.pth', 'weight': float('nan')}, r'distill\.weight=nan'),
    ],
)
def test_bad_configs(distill, message):
    with pytest.raises(ValueError, match=message):
        backbone(distill=distill)


@pytest.mark.parametrize('saved', [None, {'embed_dims': 16}, {'quant': QUANT}])
def test_teachers_that_are_missing_or_do_not_fit(tmp_path, saved):
    path = tmp_path / 'float.pth'
    if saved is not None:
        torch.save(backbone(**saved).state_dict(), path)
    net = Head(distill={'checkpoint': str(path), 'weight': 1.0})
    message = 'is not a file' if saved is None else 'does not fit a float backbone of this architecture'
    with pytest.raises(ValueError, match=rf'distill\.checkpoint=.*{message}'):
        start_distillation(net)
