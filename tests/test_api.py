"""The Python API: from a stock detector to an integer one without a config file, and errors that say what to do."""

from __future__ import annotations

import copy
import inspect
import pydoc

import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from tiny_detector import CLASSES, tiny_config, tiny_mask_rcnn

import mixaq_mmdet
from mixaq_mmdet.deploy import IntegerSwin
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.quantization import NotCalibratedError, Quantizer, quantizer_mode
from mixaq_mmdet.registry import MODELS

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def stock_detector(seed=0, **backbone):
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(seed)
        model = MODELS.build(tiny_mask_rcnn(**backbone))
    return model.eval()


@pytest.fixture(scope='module')
def files(tiny_coco, tmp_path_factory):
    """A stock config and its checkpoint."""
    folder = tmp_path_factory.mktemp('stock')
    cfg = tiny_config(tiny_coco, folder)
    cfg.dump(folder / 'stock.py')
    content = {'meta': {'dataset_meta': {'classes': CLASSES}}, 'state_dict': stock_detector().state_dict()}
    torch.save(content, folder / 'stock.pth')
    return str(folder / 'stock.py'), str(folder / 'stock.pth')


@pytest.fixture(scope='module')
def pictures(tiny_coco):
    return sorted((tiny_coco / 'images').iterdir())


def test_the_api_is_listed():
    names = ['calibrate', 'convert', 'cost', 'export', 'load', 'quantize']
    assert set(names) <= set(mixaq_mmdet.__all__)
    shown = pydoc.render_doc(mixaq_mmdet, renderer=pydoc.plaintext)
    for name in names:
        assert f'{name}(' in shown
        assert inspect.signature(getattr(mixaq_mmdet, name)).return_annotation


@torch.no_grad()
def test_a_stock_backbone_keeps_its_weights_and_outputs():
    model = stock_detector(use_abs_pos_embed=True, pretrain_img_size=64)
    weights = copy.deepcopy(model.state_dict())
    expected = model.backbone(IMAGE)
    assert mixaq_mmdet.quantize(model, 'MinMax', w_bits=8) is model
    assert type(model.backbone) is TwoBranchSwin
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    with quantizer_mode(model, 'float'):
        for found, wanted in zip(model.backbone(IMAGE), expected, strict=True):
            torch.testing.assert_close(found, wanted)


def test_six_lines_from_a_stock_detector_to_an_integer_one(files, pictures):
    model = init_detector(*files, device='cpu', palette='random')
    mixaq_mmdet.quantize(model, method='RepQ', w_bits=4, a_bits=8, low_a_bits=4)
    table = mixaq_mmdet.calibrate(model, pictures)
    model.backbone.set_ratios(low=0.5)
    integer = mixaq_mmdet.convert(model)
    found = inference_detector(integer, pictures[0])

    assert 'qkv_in low' in str(table)
    assert type(integer) is type(model)
    assert isinstance(integer.backbone, IntegerSwin)
    assert type(model.backbone) is TwoBranchSwin, 'the argument stays as it is'
    with torch.no_grad():
        for simulated, converted in zip(model.backbone(IMAGE), integer.backbone(IMAGE), strict=True):
            # a code that takes the other side of a border grows through the blocks of a random model
            assert float((simulated - converted).norm() / simulated.norm()) < 0.06
    assert len(found.pred_instances) > 0


def test_what_quantize_made_is_what_a_config_makes(files, pictures, tmp_path):
    """A checkpoint of one loads into the other."""
    model = mixaq_mmdet.quantize(mixaq_mmdet.load(*files), 'MinMax', w_bits=8, a_bits=8, low_a_bits=4)
    mixaq_mmdet.calibrate(model, pictures)
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'calibrated.pth')
    cfg = Config.fromfile(files[0])
    cfg.model.backbone.update(type='TwoBranchSwin', quant=dict(method='MinMax', w_bits=8, a_bits=8, low_a_bits=4))
    again = mixaq_mmdet.load(cfg, tmp_path / 'calibrated.pth')
    with torch.no_grad():
        for one, other in zip(model.backbone(IMAGE), again.backbone(IMAGE), strict=True):
            assert torch.equal(one, other)
    assert mixaq_mmdet.convert(again).backbone.stored_bits


@pytest.mark.parametrize('scope', ['backbone', 'detector'])
def test_files_batches_and_tensors_calibrate_alike(files, pictures, scope):
    loader = Runner.build_dataloader(Config.fromfile(files[0]).test_dataloader)
    original = mixaq_mmdet.load(*files)
    inputs = [original.data_preprocessor(batch, False)['inputs'] for batch in loader]
    states = []
    for images in (pictures, loader, torch.cat(inputs), [image[0] for image in inputs]):
        model = mixaq_mmdet.quantize(copy.deepcopy(original), 'MinMax', scope=scope)
        mixaq_mmdet.calibrate(model, images)
        assert all(module.ready for module in model.modules() if isinstance(module, Quantizer))
        states.append(model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
    assert any(name.startswith('roi_head.') and name.endswith('calibrated') for name in states[0]) == (
        scope == 'detector'
    )


def test_overrides_go_to_the_part_they_name():
    overrides = [dict(pattern='stages.0.*', w_bits=6), dict(pattern='roi_head.bbox_head.*', w_bits=5)]
    model = mixaq_mmdet.quantize(stock_detector(), 'MinMax', scope='detector', overrides=overrides)
    assert model.backbone.stages[0].blocks[0].attn.w_msa.qkv.weight_quant.bits == 6
    assert model.backbone.stages[1].blocks[0].attn.w_msa.qkv.weight_quant.bits == 4
    assert model.roi_head.bbox_head.fc_cls.weight_quant.bits == 5


def test_cost_of_a_detector_and_of_its_backbone():
    model = stock_detector()
    table = mixaq_mmdet.cost(model, (64, 96))
    assert 'SwinTransformer, one image of 64 x 96' in str(table)
    mixaq_mmdet.quantize(model, w_bits=4, a_bits=8, low_a_bits=4)
    with model.backbone.at_ratios(low=0.5):
        low = mixaq_mmdet.cost(model.backbone, (64, 96), level='layer').cost
    assert low.relative('paper') < 1
    assert low.mean_activation_bits() < mixaq_mmdet.cost(model, (64, 96)).cost.mean_activation_bits()


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda api, model: api.quantize('model.pth'), 'model is str without a SwinTransformer'),
        (lambda api, model: api.quantize(model.neck), 'model is FPN without a SwinTransformer'),
        (lambda api, model: api.quantize(model, 'GPTQ'), r"quant.method='GPTQ' is unknown"),
        (lambda api, model: api.quantize(model, scope='head'), "scope='head' is unknown"),
        (lambda api, model: api.quantize(model.backbone, scope='detector'), "scope='detector' needs a detector"),
        (lambda api, model: api.quantize(api.quantize(model)), 'model has quantizers already'),
        (lambda api, model: api.calibrate(model, IMAGE), 'model has nothing to calibrate'),
        (lambda api, model: api.calibrate(model.state_dict(), IMAGE), 'is not a torch module'),
        (lambda api, model: api.calibrate(api.quantize(model), []), 'images is empty'),
        (lambda api, model: api.calibrate(api.quantize(model), 5), 'images=5 must be tensors'),
        (lambda api, model: api.calibrate(api.quantize(model), [5]), r'images\[0\] is a int'),
        (lambda api, model: api.calibrate(api.quantize(model), IMAGE.byte()), r'normalised images are floats'),
        (lambda api, model: api.calibrate(api.quantize(model), 'a.jpg'), 'the model has no cfg'),
        (lambda api, model: api.convert(model), 'not quantized|quant'),
        (lambda api, model: api.cost(model, (64,)), r'shape=\(64,\) must be \(height, width\)'),
        (lambda api, model: api.cost(model, (0, 64)), 'shape=0 must be a whole number'),
        (lambda api, model: api.load('missing.py', 'missing.pth'), 'missing.py'),
    ],
)
def test_errors_name_the_field_and_leave_the_model_as_it_is(call, message):
    model = stock_detector()
    with pytest.raises(ValueError, match=message):
        call(mixaq_mmdet, model)


def test_converting_before_calibrating():
    with pytest.raises(NotCalibratedError, match='not calibrated:'):
        mixaq_mmdet.convert(mixaq_mmdet.quantize(stock_detector()))


def test_a_failed_quantize_leaves_a_stock_model():
    model = stock_detector()
    with pytest.raises(ValueError, match='unknown keys'):
        mixaq_mmdet.quantize(model, bit=3)
    with pytest.raises(ValueError, match=r'quant\.method=ERQ quantizes backbones alone'):
        mixaq_mmdet.quantize(model, 'ERQ', scope='detector')
    assert not isinstance(model.backbone, TwoBranchSwin)


def test_a_stock_detector_exports_from_memory(pictures, tmp_path, files):
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    model = mixaq_mmdet.load(*files)
    kind = type(model.backbone)
    report = mixaq_mmdet.export(
        model, tmp_path / 'stock.onnx', shape=(64, 96), scope='backbone', images=pictures[:1], timed=False
    )
    assert type(model.backbone) is kind
    assert max(report.errors['c5']) < 1e-4
    assert 'c5: relative error' in str(report)


def test_a_converted_model_is_not_exported(tmp_path):
    model = mixaq_mmdet.quantize(stock_detector())
    mixaq_mmdet.calibrate(model, IMAGE)
    with pytest.raises(ValueError, match='converted already; export the calibrated'):
        mixaq_mmdet.export(mixaq_mmdet.convert(model), tmp_path / 'x.onnx', shape=(64, 64))
