"""tools/analyze.py bops: totals against the published ones, stock and quantized configs, user errors."""

from __future__ import annotations

import json

import pytest
import torch
from tool_process import REPOSITORY, load_tool

from mixaq_mmdet.analysis.bops import backbone_bops
from mixaq_mmdet.analysis.model_config import build_backbone, usual_shape
from mixaq_mmdet.models import TwoBranchSwin

SWIN_T = str(REPOSITORY / 'configs/mixaq/mask-rcnn_swin-t_mixaq-ptq-w4a8.py')


@pytest.fixture
def analyze(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return load_tool('analyze.py').main


def test_swin_t_at_its_usual_size(analyze, tmp_path, capsys):
    analyze(['bops', SWIN_T, '--level', 'stage', '--out', 'cost.json'])
    printed = capsys.readouterr().out
    assert 'one image of 800 x 1216' in printed
    assert 'MACs: 90.56 G executed, 97.14 G window layout' in printed
    found = json.loads((tmp_path / 'cost.json').read_text())
    assert 0.72 < found['relative']['paper']['executed'] < 0.76
    assert len(found['per_layer']) == 1 + 12 * 6 + 3


def test_stock_swin_counts_as_float(analyze, tiny_cfg, tmp_path, capsys):
    tiny_cfg.dump(tmp_path / 'stock.py')
    analyze(['bops', 'stock.py', '--shape', '64', '64'])
    printed = capsys.readouterr().out
    assert 'SwinTransformer, one image of 64 x 64' in printed
    assert 'mean activation bits: 32.00' in printed
    assert 'relative cost: 1.000' in printed


def test_other_backbones_and_empty_shapes_are_refused(analyze, tiny_cfg, tmp_path):
    tiny_cfg.dump(tmp_path / 'stock.py')
    for arguments, message in (
        (['stock.py', '--shape', '0', '64'], 'empty side'),
        (['stock.py', '--cfg-options', 'model.backbone.type=ResNet'], 'is not a Swin'),
        (['nowhere.py'], 'is not a file'),
    ):
        with pytest.raises(SystemExit) as stop:
            analyze(['bops', *arguments])
        assert message in str(stop.value)


def test_usual_shape_follows_the_test_pipeline(tiny_cfg):
    assert usual_shape(tiny_cfg) == (64, 64)
    resize = next(step for step in tiny_cfg.test_dataloader.dataset.pipeline if step.type == 'Resize')
    resize.scale = (1333, 800)
    assert usual_shape(tiny_cfg) == (800, 1216)


def test_macs_equal_a_count_by_hooks(tiny_cfg):
    """Window layout on a size that needs no padding: each linear layer's rows times its weights."""
    tiny_cfg.model.backbone.update(type='TwoBranchSwin', drop_path_rate=0.0)
    backbone = build_backbone(tiny_cfg)
    assert isinstance(backbone, TwoBranchSwin)
    backbone.set_ratios(0.0, 0.5)
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output.numel() // output.shape[-1] * module.weight.numel()

    for module in backbone.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        backbone(torch.randn(1, 3, 128, 128))
    cost = backbone_bops(backbone, (128, 128))
    linear = cost.group(lambda layer: layer.kind)['linear']
    assert counted == linear.macs()
