"""Whole detectors on integers: layer by layer and as a whole the simulated ones; files, copies, refusals."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from tiny_detectors import BACKBONE, DETECTORS, QUANT, batch, calibrated, mask_rcnn
from torch import nn

from mixaq_mmdet.deploy import convert_model, integer_detector
from mixaq_mmdet.deploy.backends import OnednnBackend
from mixaq_mmdet.deploy.codes import codes_in_torch, to_codes
from mixaq_mmdet.deploy.files import integer_config
from mixaq_mmdet.deploy.integer_layer import IntegerLayer
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization.layers import QuantWeight

BACKEND, REASON = OnednnBackend.load()
FLIPS = 2e-3  # share of codes that may take the other side of a border
GROWTH = 0.04  # relative, of maps: what such a code is worth behind several layers of the tests' tiny models
PAIRS = [*((name, 'RepQ W4A8') for name in DETECTORS), *(('Mask R-CNN', quant) for quant in list(QUANT)[1:])]
HANDED_ON = {  # layers, RoI extractors and maps of the backbone that make codes on the grids of RepQ
    'Mask R-CNN': 4 + 1 + 2 + 1 + 2,
    'PAFPN': 4 + 1 + 2 + 1 + 2,
    '4conv1fc': 4 + 1 + 5 + 1 + 2,
    'Cascade Mask R-CNN': 4 + 1 + 6 + 3 + 6,
    'RetinaNet': 3 + 4,
    'ChannelMapper': 4 + 4,
}


@pytest.fixture(scope='module', params=PAIRS, ids=lambda pair: ', '.join(pair))
def pair(request):
    """(name, simulated detector, its integer twin in plain torch)."""
    model = calibrated(*request.param)
    return request.param, model, convert_model(model, 'torch')


@torch.no_grad()
def seen_by_layers(model) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Input and output of every quantized layer of neck and heads in each call of a test."""
    seen: dict[str, list[Any]] = {}
    handles = []
    for path, layer in model.named_modules():
        if isinstance(layer, QuantWeight) and not path.startswith('backbone.'):
            seen[path] = []

            def note(module, inputs, output, calls=seen[path]):
                calls.append((inputs[0].clone(), output.clone()))

            handles.append(layer.register_forward_hook(note))
    try:
        model.test_step(batch())
    finally:
        for handle in handles:
            handle.remove()
    return seen


def close(found, expected, layer):
    """Whether results of a layer are the simulated ones, or their codes at most a step apart and few of them."""
    expected = expected.relu() if layer.layer.relu else expected
    grid = layer.layer.out_grid
    if grid is None:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        return
    apart = (found.int() - codes_in_torch(expected, grid).int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() <= max(FLIPS, 1 / apart.numel())


@pytest.mark.parametrize(
    'engine', ['torch', pytest.param('auto', marks=pytest.mark.skipif(BACKEND is None, reason=str(REASON)))]
)
def test_every_layer_is_the_simulated_one(pair, engine):
    _, model, twin = pair
    seen = seen_by_layers(model)
    assert seen
    assert all(seen.values())
    for path, calls in seen.items():
        layer = twin.get_submodule(path)
        assert type(layer) is IntegerLayer
        own = copy.copy(layer)
        own.engine, own.runner = engine, None
        for x, expected in calls:
            quantized = model.get_submodule(path).input_quant(x)
            codes = to_codes(x, layer.layer.grid)
            values = (codes.float() - layer.layer.grid.zero_point) * layer.layer.grid.scale
            if layer.layer.grid.after is not None:
                after = layer.layer.grid.after
                values = values + (after.view(-1, 1, 1) if x.dim() == 4 else after)
            torch.testing.assert_close(values, quantized, rtol=1e-5, atol=1e-5)
            close(own(codes), expected, layer)


@torch.no_grad()
def test_maps_of_the_neck_are_the_simulated_ones(pair):
    _, model, twin = pair
    images = model.data_preprocessor(batch(), False)['inputs']
    for a, b in zip(model.extract_feat(images), twin.extract_feat(images), strict=True):
        assert float((a - b).norm() / a.norm()) < GROWTH


@torch.no_grad()
def test_the_same_maps_give_the_same_detections(pair, monkeypatch):
    """From the same maps, since one code more in a score of noise makes another proposal the best."""
    _, model, twin = pair
    maps = model.extract_feat(model.data_preprocessor(batch(), False)['inputs'])
    expected = model.test_step(batch())[0].pred_instances
    monkeypatch.setattr(twin, 'extract_feat', lambda _: maps)
    found = twin.test_step(batch())[0].pred_instances
    assert set(found.keys()) == set(expected.keys())
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0.02)
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=0, atol=0.5)


def makers_of_codes(twin) -> int:
    layers = sum(m.layer.out_grid is not None for m in twin.modules() if isinstance(m, IntegerLayer))
    extractors = sum(getattr(m, 'codes', None) is not None for m in twin.modules())
    with torch.no_grad():
        maps = twin.backbone(torch.zeros(1, 3, 64, 64))
    return layers + extractors + sum(x.dtype == torch.uint8 for x in maps)


@pytest.mark.parametrize('name', DETECTORS)
def test_codes_travel_where_grids_are_shared(name):
    assert makers_of_codes(convert_model(calibrated(name, 'RepQ W4A8'), 'torch')) == HANDED_ON[name]


def test_codes_travel_through_a_deconvolution():
    """From the last convolution to it, and from it to the logits."""
    twin = convert_model(calibrated('Mask R-CNN', 'RepQ W4A8 and deconvolution'), 'torch')
    assert makers_of_codes(twin) == HANDED_ON['Mask R-CNN'] + 2
    upsample = twin.roi_head.mask_head.upsample
    assert upsample.layer.relu
    codes = torch.randint(0, 200, (3, 8, 5, 4), dtype=torch.uint8)
    found = upsample(codes)
    assert found.dtype == torch.uint8
    assert found.shape == (3, 8, 10, 8)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert upsample(codes[:0]).shape == (0, 8, 10, 8)


@pytest.mark.parametrize('quant', ['RepQ W4A8', 'asymmetric W8A8', 'OFQ W8A4'])
@pytest.mark.parametrize(
    'engine', ['torch', pytest.param('auto', marks=pytest.mark.skipif(BACKEND is None, reason=str(REASON)))]
)
@torch.no_grad()
def test_batch_norms_are_part_of_their_convolutions(quant, engine):
    model = calibrated('BatchNorm', quant)
    twin = convert_model(model, engine)
    modules = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, ConvModule) and isinstance(module.conv, QuantWeight) and module.with_norm
    }
    assert len(modules) == 8 + 4 + 2
    assert any(bool((module.norm.weight < 0).any()) for module in modules.values())
    for path, module in modules.items():
        own = twin.get_submodule(path)
        assert not own.with_norm
        assert type(own.norm) is nn.Identity
        x = 2 * torch.randn(2, module.in_channels, 6, 7, generator=torch.Generator().manual_seed(0)).relu()
        close(own(x), module(x), own.conv)
    assert not any('.bn.' in name for name in twin.state_dict() if not name.startswith('backbone.'))


def test_a_file_with_norms_in_its_layers_fills_a_stock_detector():
    twin = convert_model(calibrated('BatchNorm', 'RepQ W4A8'), 'torch')
    cfg = config_of()
    for part in (cfg.model.neck, cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head):
        part.norm_cfg = dict(type='BN')
    cfg.model.roi_head.bbox_head.update(type='Shared4Conv1FCBBoxHead', conv_out_channels=8)
    loaded = MODELS.build(cfg.model).eval()
    load_state_dict(loaded, twin.state_dict(), strict=True)
    with torch.no_grad():
        a, b = (m.test_step(batch())[0].pred_instances for m in (twin, loaded))
    assert torch.equal(a.bboxes, b.bboxes)
    assert torch.equal(a.scores, b.scores)
    cfg.model.neck.norm_cfg = None
    with pytest.raises(ValueError, match=r'neck\.lateral_convs\.0\.conv has a norm behind it in the file and none'):
        load_state_dict(MODELS.build(cfg.model), twin.state_dict())


def test_offsets_before_rounding_keep_floats_between_layers():
    assert makers_of_codes(convert_model(calibrated('Mask R-CNN', 'LSQ W4A8'), 'torch')) == 0


def test_one_line_says_what_runs_as_what(pair, monkeypatch):
    (name, quant), model, _ = pair
    lines = []
    monkeypatch.setattr(integer_detector, 'print_log', lambda line, *_: lines.append(line))
    convert_model(model, 'torch')
    assert len(lines) == 1
    assert 'layers of neck and heads as exact integers in plain torch, because engine="torch"; float: ' in lines[0]
    deconvolutions = {'RetinaNet': 0, 'ChannelMapper': 0, 'Cascade Mask R-CNN': 3}.get(name, 1)
    deconvolutions *= 'deconvolution' not in QUANT[quant]
    assert lines[0].count('upsample') == deconvolutions
    assert lines[0].endswith('upsample' if deconvolutions else 'float: none')


def config_of(name='Mask R-CNN', **edits) -> Config:
    model = DETECTORS[name]() if name != 'Mask R-CNN' else mask_rcnn()
    model.update(type='QuantDetector', base=model.type, detector_quant=QUANT['RepQ W4A8'])
    cfg = integer_config(Config(dict(model=model, default_scope='mmdet')))
    cfg.model.engine, cfg.model.backbone.engine = 'torch', 'torch'
    cfg.merge_from_dict(edits)
    return cfg


@pytest.mark.parametrize('name', ['Mask R-CNN', 'RetinaNet'])
def test_a_file_fills_a_detector_of_stock_classes(name):
    twin = convert_model(calibrated(name, 'RepQ W4A8'), 'torch')
    loaded = MODELS.build(config_of(name).model).eval()
    assert type(loaded) is type(twin)
    for _ in range(2):  # a second file replaces the first
        load_state_dict(loaded, twin.state_dict(), strict=True)
        assert list(loaded.state_dict()) == list(twin.state_dict())
        with torch.no_grad():
            a, b = (m.test_step(batch())[0].pred_instances for m in (twin, loaded))
        assert torch.equal(a.bboxes, b.bboxes)
        assert torch.equal(a.scores, b.scores)
    loaded.backbone.set_ratios(0.0, 0.5)
    with torch.no_grad():
        assert not torch.equal(loaded.test_step(batch())[0].pred_instances.scores, a.scores)


def saved_whole(twin):
    file = io.BytesIO()
    torch.save(twin, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize('name', ['Mask R-CNN', 'RetinaNet'])
@pytest.mark.parametrize('send', [copy.deepcopy, saved_whole])
def test_batches_of_unlike_images_and_copies(name, send):
    twin = convert_model(calibrated(name, 'RepQ W4A8'))
    sent = send(twin)
    assert [type(module) for module in sent.modules()] == [type(module) for module in twin.modules()]
    images = batch(3, ((64, 64), (40, 57)))
    with torch.no_grad():
        for a, b in zip(twin.test_step(copy.deepcopy(images)), sent.test_step(images), strict=True):
            assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
            if name == 'Mask R-CNN':
                assert a.pred_instances.masks.shape[1:] == a.ori_shape


def test_no_detections_are_none():
    twin = convert_model(calibrated('Mask R-CNN', 'RepQ W4A8'))
    twin.roi_head.test_cfg.score_thr = 2.0
    with torch.no_grad():
        assert len(twin.test_step(batch())[0].pred_instances) == 0


def test_a_part_that_an_override_keeps_float_stays_float():
    model = mask_rcnn()
    overrides = [
        dict(pattern='roi_head.mask_head.*', enabled=False),
        dict(pattern='neck.*', roles=['head_in'], enabled=False),
    ]
    model.update(type='QuantDetector', base=model.type, detector_quant={**QUANT['RepQ W4A8'], 'overrides': overrides})
    simulated = MODELS.build(model).eval()
    Calibrator(simulated).run([batch(1)])
    twin = convert_model(simulated, 'torch')
    assert isinstance(twin.roi_head.mask_head.conv_logits, nn.Conv2d)
    neck, quantized = twin.neck.fpn_convs[0].conv, simulated.neck.fpn_convs[0].conv
    assert type(neck) is nn.Conv2d
    assert torch.equal(neck.weight, quantized.quantized_weight())
    loaded = MODELS.build(config_of().model).eval()
    load_state_dict(loaded, twin.state_dict(), strict=True)
    assert torch.equal(loaded.neck.fpn_convs[0].conv.weight, neck.weight)


@pytest.mark.parametrize(
    ('edits', 'message'),
    [
        (
            {'model.roi_head.bbox_head.num_classes': 5},
            r'roi_head.bbox_head.fc_cls has weights of shape \[4, 16\] in the',
        ),
        (
            {'model.roi_head.mask_head': None},
            r"the file has a layer 'roi_head.mask_head.convs.0.conv', the config has no",
        ),
    ],
)
def test_files_of_other_detectors_are_refused(edits, message):
    state = convert_model(calibrated('Mask R-CNN', 'RepQ W4A8'), 'torch').state_dict()
    cfg = config_of()
    for key, value in edits.items():
        owner = cfg
        *path, last = key.split('.')
        for name in path:
            owner = owner[name]
        owner.pop(last) if value is None else owner.update({last: value})
    if 'model.roi_head.mask_head' in edits:
        cfg.model.roi_head.pop('mask_roi_extractor')
    with pytest.raises(ValueError, match=message):
        load_state_dict(MODELS.build(cfg.model), state)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match=r"model.engine='fpga' is unknown; use one of \['auto'"):
        MODELS.build(config_of(**{'model.engine': 'fpga'}).model)
    with pytest.raises(ValueError, match=r"model.base='Nobody' is not a detector"):
        MODELS.build(config_of(**{'model.base': 'Nobody'}).model)


def test_a_backbone_alone_leaves_neck_and_heads_float():
    model = MODELS.build(mask_rcnn()).eval()
    Calibrator(model.backbone).run([torch.randn(1, 3, 64, 64)])
    twin = convert_model(model, 'torch')
    assert not any(isinstance(module, IntegerLayer) for module in twin.modules())
    assert all(x.dtype == torch.float32 for x in twin.backbone(torch.zeros(1, 3, 64, 64)))
    assert BACKBONE['quant'] is not None
