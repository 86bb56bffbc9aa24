"""Whole-detector scope: what is replaced, how it is calibrated, what its files are refused by."""

import pytest
import torch
from mmdet.models import MaskRCNN
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner.checkpoint import load_state_dict
from tiny_detector import stock_config, tiny_mask_rcnn
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator, uncalibrated
from mixaq_mmdet.quantization import QuantConv2d, QuantLinear, quantizer_mode

register_all_modules()

HEADS = {'method': 'RepQ', 'w_bits': 8, 'a_bits': 8}


def detector(heads=HEADS, swin='TwoBranchSwin', **backbone):
    cfg = tiny_mask_rcnn(type=swin, **backbone)
    if heads is not None:
        cfg.update(type='QuantDetector', base=cfg.type, detector_quant=heads)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model.eval()


def other_detector(path, **edits):
    """A stock detector that is no Mask R-CNN, on the same tiny backbone, as QuantDetector."""
    whole = Config.fromfile(stock_config(path))
    whole.merge_from_dict({f'model.{key}': value for key, value in edits.items()})
    cfg = whole.model
    cfg.backbone = {**tiny_mask_rcnn(type='TwoBranchSwin').backbone, 'out_indices': cfg.neck.pop('read')}
    cfg.update(type='QuantDetector', base=cfg.type, detector_quant=HEADS)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model.eval()


def batches(number=2):
    generator = torch.Generator().manual_seed(0)
    meta = {'img_shape': (64, 64), 'ori_shape': (64, 64), 'scale_factor': (1.0, 1.0), 'pad_shape': (64, 64)}
    return [
        {
            'inputs': [torch.randint(0, 255, (3, 64, 64), generator=generator).byte()],
            'data_samples': [DetDataSample(metainfo=meta)],
        }
        for _ in range(number)
    ]


def test_neck_and_heads_are_replaced_and_names_stay():
    model, stock = detector(), detector(None, 'SwinTransformer')
    assert type(model) is type(stock)
    replaced = {n for n, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)}
    expected = {
        name
        for name, module in stock.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith('backbone')
    }
    assert replaced == expected
    assert isinstance(model.roi_head.mask_head.upsample, nn.ConvTranspose2d)
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected
    assert not missing


@pytest.mark.parametrize('swin', ['TwoBranchSwin', 'SwinTransformer'])
def test_calibrated_part_by_part(swin):
    model = detector(swin=swin)
    noise = Calibrator(model).run(batches())
    assert not uncalibrated(model)
    assert min(noise.values()) > 20
    assert 'forward' not in vars(model.backbone)
    data = model.data_preprocessor(batches(1)[0], False)
    with torch.no_grad():
        features = model.extract_feat(data['inputs'])
        with quantizer_mode(model, 'float'):
            reference = model.extract_feat(data['inputs'])
    for a, b in zip(reference, features, strict=True):
        assert (a - b).square().sum() < 0.01 * a.square().sum()
    model.test_step(batches(1)[0])


@pytest.mark.parametrize(
    'quant',
    [
        {'method': 'AdaLog', 'keep': 1, 'expansions': 0, 'rounds': 1, 'output_expansions': 0, 'rows': 4},
        {'method': 'NoisyQuant', 'shift_steps': 1, 'noise_steps': 1, 'rows': 4},
    ],
    ids=lambda quant: quant['method'],
)
def test_heads_are_searched_by_what_they_give(quant):
    model = detector({**quant, 'w_bits': 4, 'a_bits': 4}, swin='SwinTransformer')
    before = {name: value.clone() for name, value in model.state_dict().items() if name.endswith('.weight')}
    Calibrator(model).run(batches(1))
    assert not uncalibrated(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    model.test_step(batches(1)[0])


def test_both_scopes_together():
    model = detector(quant={'method': 'MSE', 'w_bits': 4, 'a_bits': 8})
    calibrator = Calibrator(model)
    names = calibrator.run(batches(1))
    assert not uncalibrated(model)
    assert {name.split('.')[0] for name in names} == {'patch_embed', 'stages', 'neck', 'rpn_head', 'roi_head'}


def test_one_stage_detector():
    neck = {'neck.in_channels': [16, 32, 64], 'neck.out_channels': 8, 'neck.start_level': 0, 'neck.read': (1, 2, 3)}
    head = {'in_channels': 8, 'feat_channels': 8, 'stacked_convs': 1, 'num_classes': 3}
    edits = {f'bbox_head.{key}': value for key, value in head.items()}
    model = other_detector('_base_/models/retinanet_r50_fpn.py', **neck, **edits)
    replaced = {name for name, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)}
    assert {'bbox_head.cls_convs.0.conv', 'bbox_head.retina_cls', 'bbox_head.retina_reg'} <= replaced
    assert min(Calibrator(model).run(batches()).values()) > 20
    assert not uncalibrated(model)
    model.test_step(batches(1)[0])


def test_heads_of_the_detr_family_stay_float_and_say_so(monkeypatch):
    said = []
    monkeypatch.setattr('mixaq_mmdet.models.quant_detector.print_log', lambda text, logger: said.append(text))
    edits = {'num_queries': 5, 'neck.in_channels': [64], 'neck.out_channels': 16, 'neck.read': (3,)}
    for part in ('encoder', 'decoder'):
        layer = f'{part}.layer_cfg'
        edits |= {f'{part}.num_layers': 1, f'{layer}.self_attn_cfg.embed_dims': 16}
        edits |= {f'{layer}.ffn_cfg.embed_dims': 16, f'{layer}.ffn_cfg.feedforward_channels': 16}
    edits |= {'decoder.layer_cfg.cross_attn_cfg.embed_dims': 16, 'positional_encoding.num_feats': 8}
    edits |= {'bbox_head.embed_dims': 16, 'bbox_head.num_classes': 3, 'test_cfg.max_per_img': 5}
    model = other_detector('detr/detr_r50_8xb2-150e_coco.py', **edits)
    assert said == ['QuantDetector: the heads of DETR stay float, quantized are: neck']
    replaced = {name for name, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)}
    assert replaced
    assert all(name.startswith('neck.') for name in replaced)
    Calibrator(model).run(batches(1))
    assert not uncalibrated(model)
    model.test_step(batches(1)[0])


def test_layers_with_a_forward_of_their_own_stay_what_they_are():
    cfg = tiny_mask_rcnn(type='TwoBranchSwin')
    cfg.roi_head.bbox_head.update(cls_predictor_cfg={'type': 'NormedLinear'})
    torch.manual_seed(0)
    stock = MODELS.build(cfg).eval()
    cfg.update(type='QuantDetector', base=cfg.type, detector_quant=HEADS)
    model = MODELS.build(cfg).eval()
    assert type(model.roi_head.bbox_head.fc_cls).__name__ == 'NormedLinear'
    assert isinstance(model.roi_head.bbox_head.fc_reg, QuantLinear)
    model.load_state_dict(stock.state_dict(), strict=False)
    features = torch.randn(2, stock.roi_head.bbox_head.fc_cls.in_features)
    with quantizer_mode(model, 'float'), torch.no_grad():
        torch.testing.assert_close(model.roi_head.bbox_head.fc_cls(features), stock.roi_head.bbox_head.fc_cls(features))


@pytest.mark.parametrize('heads', [HEADS, {'method': 'LSQ', 'w_bits': 8, 'a_bits': 8}])
def test_a_head_for_other_classes_is_calibrated_anew(heads):
    model = detector(heads)
    Calibrator(model).run(batches(1))
    cfg = tiny_mask_rcnn(type='TwoBranchSwin')
    for head in (cfg.roi_head.bbox_head, cfg.roi_head.mask_head):
        head.num_classes = head.num_classes + 2
    cfg.update(type='QuantDetector', base=cfg.type, detector_quant=heads)
    other = MODELS.build(cfg).eval()
    load_state_dict(other, model.state_dict())  # mmengine's: warns of sizes that differ
    resized = [quantizer.name for quantizer in uncalibrated(other)]
    assert sorted(resized) == [
        f'roi_head.{layer}.weight' for layer in ('bbox_head.fc_cls', 'bbox_head.fc_reg', 'mask_head.conv_logits')
    ]
    Calibrator(other).run(batches(1))
    assert not uncalibrated(other)
    assert other.roi_head.bbox_head.fc_cls.quantized_weight().abs().max() > 0


def test_its_file_is_refused_by_a_plain_detector_and_by_other_bits():
    state = detector().state_dict()
    with pytest.raises(ValueError, match=r'holds a quantized model, but model\.detector_quant is absent'):
        detector(None).load_state_dict(state, strict=False)
    with pytest.raises(ValueError, match=r'model\.detector_quant differs .* w_bits=4 \(checkpoint: 8\)'):
        detector({**HEADS, 'w_bits': 4}).load_state_dict(state, strict=False)
    stock_backbone = detector(swin='SwinTransformer')
    with pytest.raises(ValueError, match=r'w_bits=4 \(checkpoint: 8\)'):
        detector({**HEADS, 'w_bits': 4}, 'SwinTransformer').load_state_dict(stock_backbone.state_dict(), strict=False)


@pytest.mark.parametrize(
    ('heads', 'message'),
    [
        ({'method': 'RepX'}, r"detector_quant\.method='RepX' is unknown"),
        ({**HEADS, 'method': 'ERQ'}, r"detector_quant\.method=ERQ quantizes backbones alone; use one of \['"),
        ({**HEADS, 'method': 'PTQ4ViT'}, r'detector_quant\.method=PTQ4ViT quantizes backbones alone'),
        ({**HEADS, 'w_bits': 1}, r'detector_quant\.w_bits=1'),
        ({**HEADS, 'overrides': [{'pattern': 'head.*', 'a_bits': 4}]}, "'head.*' matches no layer; paths look like"),
    ],
)
def test_bad_configs(heads, message):
    with pytest.raises(ValueError, match=message):
        detector(heads)


def test_a_missing_method_is_refused_by_name():
    cfg = tiny_mask_rcnn(type='TwoBranchSwin')
    cfg.update(type='QuantDetector', base=cfg.type)
    with pytest.raises(ValueError, match=r'model\.detector_quant is missing'):
        MODELS.build(cfg)


def test_base_may_be_a_class_as_in_pure_python_configs(tmp_path):
    """What mmengine writes of such a config into checkpoints holds the class's path."""
    lines = [
        'from mmdet.models import MaskRCNN',
        'from mixaq_mmdet.models.quant_detector import build_quant_detector',
        f'model = dict({tiny_mask_rcnn(type="TwoBranchSwin").to_dict()!r})',
        f'model.update(type=build_quant_detector, base=MaskRCNN, detector_quant={HEADS!r})',
    ]
    (tmp_path / 'lazy.py').write_text('\n'.join(lines))
    Config.fromfile(tmp_path / 'lazy.py').dump(tmp_path / 'dumped.py')
    for name in ('lazy.py', 'dumped.py'):
        model = MODELS.build(Config.fromfile(tmp_path / name).model)
        assert type(model) is MaskRCNN
        assert isinstance(model.rpn_head.rpn_conv, QuantConv2d)


@pytest.mark.parametrize('base', [None, 'MaskRCN', dict])
def test_an_unknown_base_is_refused_by_name(base):
    cfg = {**tiny_mask_rcnn(type='TwoBranchSwin'), 'type': 'QuantDetector', 'detector_quant': HEADS}
    cfg |= {} if base is None else {'base': base}
    with pytest.raises(ValueError, match=r'model\.base=.* is not a detector that mmdet knows'):
        MODELS.build(cfg)
