"""The PTQ recipes: bits, scope, cost and data as their names promise; the mini ones build at full size."""

from __future__ import annotations

import re

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from shrunk_recipe import BACKBONE, ROOT, build, shrunk_recipe

from mixaq_mmdet.quantization import QuantConv2d, Quantizer
from mixaq_mmdet.windows.cost import LayerBits, SwinSpec, backbone_cost

COCO = sorted(path.name for path in (ROOT / 'configs/mixaq').glob('*ptq*.py'))
MINI = sorted(path.name for path in (ROOT / 'configs/mini').glob('*ptq*.py'))


def relative_cost(backbone, shape):
    names = ('embed_dims', 'depths', 'num_heads', 'window_size')
    spec = SwinSpec(**{name: tuple(v) if isinstance(v := backbone[name], list) else v for name in names})
    quant = backbone.quant
    bits = LayerBits(quant.w_bits, quant.a_bits, quant.low_a_bits)
    return backbone_cost(spec, shape, backbone.low_ratios, bits=bits).relative('paper')


def check(cfg, name):
    weight, activation = map(int, re.search(r'w(\d)a(\d)', name).groups())
    method = 'Percentile' if 'symmetric' in name else 'RepQ'  # the zero point of RepQ's activations is not 0
    scopes = [cfg.model.backbone.quant] + ([cfg.model.detector_quant] if 'detector' in name else [])
    for quant in scopes:
        assert (quant.method, quant.w_bits, quant.a_bits) == (method, weight, activation)
    assert (cfg.model.type == 'QuantDetector') == ('detector' in name)
    assert cfg.train_cfg == dict(type='PTQLoop', num_images=32)
    assert cfg.load_from
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.backbone.type == 'TwoBranchSwin'


def test_there_is_a_recipe_for_every_model_bits_and_scope():
    assert len(COCO) == 4 * 4 * 2
    assert len(MINI) == 8


@pytest.mark.parametrize('name', COCO)
def test_coco_recipe(name):
    cfg = Config.fromfile(ROOT / 'configs/mixaq' / name)
    check(cfg, name)
    if 'mixaq' in name:
        assert 1 / relative_cost(cfg.model.backbone, (800, 1216)) == pytest.approx(1.35, abs=0.015)


@pytest.mark.parametrize('name', MINI)
def test_mini_recipe(name):
    cfg = Config.fromfile(ROOT / 'configs/mini' / name)
    check(cfg, name)
    assert cfg.train_dataloader.dataset.ann_file == 'annotations/instances_calib.json'
    assert (
        cfg.val_dataloader.dataset.ann_file == cfg.test_dataloader.dataset.ann_file == 'annotations/instances_val.json'
    )
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    quantizers = [m for m in model.backbone.modules() if isinstance(m, Quantizer)]
    assert len(quantizers) == 2 + 12 * (4 + 2 * 8) + 3 * 2
    assert isinstance(model.neck.fpn_convs[0].conv, QuantConv2d) == ('detector' in name)
    if 'mixaq' in name:
        assert 1 / relative_cost(cfg.model.backbone, (256, 256)) == pytest.approx(1.35, abs=0.015)


@pytest.mark.parametrize('name', ['cascade-mask-rcnn_swin-t_mixaq-ptq-w4a8-detector.py'])
def test_coco_recipe_builds_with_a_shrunk_model(name):
    cfg = shrunk_recipe(name)
    cfg.model.backbone.low_ratios = 0.5
    assert tuple(cfg.model.backbone.depths) == BACKBONE['depths']
    model = build(cfg)
    assert type(model).__name__ == 'CascadeRCNN'
    assert isinstance(model.roi_head.bbox_head[2].shared_convs[0].conv, QuantConv2d)
