"""A converted model: made from a calibrated one that stays as it was; copied, pickled, sent, never trained."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest
import tiny_backbone
import torch
from integer_twin import SIZES, integer, simulated
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from tiny_detector import tiny_mask_rcnn

from mixaq_mmdet.deploy import IntegerSwin, convert_model
from mixaq_mmdet.deploy.kernels import load
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import NotCalibratedError

KERNELS, REASON = load()
ENGINES = ['torch', pytest.param('kernels', marks=pytest.mark.skipif(KERNELS is None, reason=f'no kernels: {REASON}'))]
IMAGE = tiny_backbone.images(1)[0]


@pytest.fixture(scope='module')
def model():
    return simulated('OFQ', w_bits=4, low_a_bits=4, low_ratios=0.4, prune_ratios=0.2)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize('engine', ENGINES)
def test_it_is_what_a_loaded_file_gives(model, engine):
    twin = convert_model(model, engine)
    assert type(twin) is IntegerSwin
    assert (twin.low_ratios, twin.prune_ratios) == (model.low_ratios, model.prune_ratios)
    assert same(twin(IMAGE), integer(model, engine)(IMAGE))
    assert {name for name, _ in twin.named_parameters()} == {name for name, _ in integer(model).named_parameters()}
    assert list(twin.state_dict()) == list(integer(model).state_dict())


def test_the_calibrated_model_stays_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        maps = model(IMAGE)
        convert_model(model, 'torch').set_ratios(1.0, 0.0)
        assert same(maps, model(IMAGE))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.quant_method is not None


@pytest.fixture(scope='module')
def detector():
    init_default_scope('mmdet')
    built = MODELS.build(tiny_mask_rcnn(type='TwoBranchSwin', quant=dict(method='MinMax', w_bits=8, a_bits=8)))
    Calibrator(built.backbone).run([torch.randn(1, 3, 64, 64)])
    return built


def test_a_detector_keeps_its_classes(detector):
    converted = convert_model(detector, 'torch')
    assert type(converted) is type(detector)
    assert type(converted.backbone) is IntegerSwin
    assert not converted.training
    assert type(detector.backbone) is not IntegerSwin
    heads, own = converted.roi_head.state_dict(), detector.roi_head.state_dict()
    assert all(torch.equal(value, own[name]) and value is not own[name] for name, value in heads.items())


@pytest.mark.parametrize(
    ('wrong', 'error', 'message'),
    [
        (lambda: tiny_backbone.backbone(), ValueError, 'is not a quantized TwoBranchSwin'),
        (lambda: tiny_backbone.backbone({'method': 'MinMax'}), NotCalibratedError, 'not calibrated'),
        (lambda: integer(simulated('MinMax')), ValueError, 'converted already'),
        (lambda: torch.nn.Linear(2, 2), ValueError, 'Linear has no backbone to convert'),
    ],
)
def test_other_models_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        convert_model(wrong())


def test_unknown_engines_are_refused_before_any_work(model):
    with pytest.raises(ValueError, match="engine='fpga' is unknown"):
        convert_model(model, 'fpga')


def saved_whole(twin):
    file = io.BytesIO()
    torch.save(twin, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('send', [copy.deepcopy, lambda twin: pickle.loads(pickle.dumps(twin)), saved_whole])
def test_copies_give_the_same_maps(model, engine, send):
    twin = convert_model(model, engine)
    sent = send(twin)
    assert sent.plan.line == twin.plan.line
    assert same(sent(IMAGE), twin(IMAGE))
    sent.set_ratios(0.0, 0.5)
    assert twin.prune_ratios == model.prune_ratios
    assert not same(sent(IMAGE), twin(IMAGE))


def test_an_empty_one_is_copied_empty():
    empty = copy.deepcopy(IntegerSwin(**{**tiny_backbone.ARCHITECTURE, **SIZES}))
    with pytest.raises(ValueError, match='no weights yet'):
        empty(IMAGE)


def forward(twin):
    return [out.numpy() for out in twin(IMAGE)]


def test_a_worker_process_makes_its_own_kernels(model):
    twin = convert_model(model)
    expected = [out.clone() for out in twin(IMAGE)]
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        maps = pool.submit(forward, twin).result()
    assert same(expected, [torch.from_numpy(out) for out in maps])
    assert same(expected, twin(IMAGE)), 'sending moves its tensors into shared memory'


def test_training_fails_by_name(detector):
    converted = convert_model(detector, 'torch')
    converted.train()
    with pytest.raises(ValueError, match='a converted model cannot be trained: train or calibrate the simulated one'):
        converted.extract_feat(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        converted.extract_feat(torch.randn(1, 3, 64, 64))
    converted.eval().extract_feat(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize('quant', [None, dict(method='MinMax')])
def test_a_converted_file_in_another_config_says_what_it_is(detector, quant):
    state = convert_model(detector, 'torch').state_dict()
    other = MODELS.build(tiny_mask_rcnn(type='TwoBranchSwin', **({} if quant is None else {'quant': quant})))
    with pytest.raises(ValueError, match=r'this is a converted file.*use the config that tools/deploy.py'):
        load_state_dict(other, state)
