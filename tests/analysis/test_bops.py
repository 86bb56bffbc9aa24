"""analysis/bops.py: a backbone is read as what it is."""

from __future__ import annotations

import pytest

from mixaq_mmdet.analysis.bops import backbone_bops, layer_bits, swin_spec
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.windows.cost import SwinSpec, backbone_layers

TINY = dict(
    embed_dims=16, depths=(2, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=4, mlp_ratio=2
)


def test_swin_t_costs_what_is_published():
    backbone = TwoBranchSwin()
    assert swin_spec(backbone) == SwinSpec()
    assert round(backbone_bops(backbone, (224, 224)).macs() / 1e9, 2) == 4.49


def test_other_sizes_are_read_from_the_modules():
    spec = swin_spec(TwoBranchSwin(**TINY))
    assert spec == SwinSpec(16, (2, 1), (1, 2), 4, 2, 4, 3, (4, 2))


def test_bits_come_from_the_method_override_and_branch_included():
    overrides = [dict(pattern='stages.1.*', roles=['fc1_in'], enabled=False), dict(pattern='*.proj', w_bits=6)]
    backbone = TwoBranchSwin(**TINY, quant=dict(method='RepQ', w_bits=4, a_bits=8, low_a_bits=4, overrides=overrides))
    found = {layer.name: layer_bits(backbone, layer) for layer in backbone_layers(swin_spec(backbone), (64, 64))}
    qkv, proj = found['stages.0.blocks.0.attn.w_msa.qkv'], found['stages.0.blocks.0.attn.w_msa.proj']
    assert (qkv.weight, qkv.high, qkv.low) == (4, 8, 4)
    assert proj.weight == 6
    product = found['stages.0.blocks.0.attn.w_msa.query_key']
    assert (product.high, product.low, product.second_high, product.second_low) == (8, 4, 8, 4)
    assert found['stages.1.blocks.0.ffn.layers.0.0'].high == 32
    assert found['patch_embed.projection'].high == 8


def test_ratios_of_the_present_mode_count():
    backbone = TwoBranchSwin(**TINY, quant=dict(method='RepQ', w_bits=4, a_bits=4, low_a_bits=2)).eval()
    dense = backbone_bops(backbone, (64, 64))
    assert dense.relative() == 1
    backbone.set_ratios(low=0.5)
    half = backbone_bops(backbone, (64, 64))
    compressible = sum(layer.executed for layer in dense.layers if layer.compressible)
    total = sum(layer.executed * layer_bits(backbone, layer).high for layer in dense.layers)
    assert half.relative() == pytest.approx(1 - compressible * 1 / total, rel=1e-6)
    backbone.train()
    backbone.sample_ratios(0.0, 1.0)
    assert backbone_bops(backbone, (64, 64)).macs() == dense.macs() - compressible
