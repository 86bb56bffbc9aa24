"""Overrides and other options that could change nothing are refused by name; those that can act do."""

from __future__ import annotations

import pytest
from tiny_backbone import backbone

from mixaq_mmdet.quantization import build_method, check_overrides

HEADS = ['neck.lateral_convs.0.conv', 'roi_head.bbox_head.fc_cls']
PATCHES = 'patch_embed.projection'
DOWN = 'stages.0.downsample.*'


def quant(*overrides, method='MinMax', **options):
    return {'method': method, 'a_bits': 4, **options, 'overrides': list(overrides)}


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({}, r'\[0\] changes nothing; add some of'),
        ({'roles': ['weight']}, r'\[0\] changes nothing; add some of'),
        ({'enabled': 'False'}, r"\[0\]\.enabled='False' must be True or False"),
        ({'symmetric': 1}, r'\[0\]\.symmetric=1 must be True or False'),
        ({'per_channel': 'no'}, r"\[0\]\.per_channel='no' must be True or False"),
        (
            {'pattern': DOWN, 'roles': ['qkv_in'], 'a_bits': 8},
            r"roles=\['qkv_in'\] are not among \['weight', 'merge_in'",
        ),
        ({'roles': ['qkv_in'], 'w_bits': 4}, r"w_bits cannot act on \['qkv_in'\]"),
        ({'pattern': '*.query_key', 'w_bits': 4}, r"w_bits cannot act on \['q', 'k'\]"),
        ({'pattern': PATCHES, 'a_bits': 8}, r"a_bits cannot act on \['weight', 'patch_in'\].*patch_bits"),
        ({'pattern': DOWN, 'low_a_bits': 2}, r'low_a_bits cannot act on'),
    ],
)
def test_an_override_that_changes_nothing(override, message):
    with pytest.raises(ValueError, match=r'quant\.overrides.*' + message):
        backbone(quant({'pattern': '*', **override}))


@pytest.mark.parametrize(
    ('method', 'override'),
    [
        ('LSQ', {'symmetric': True}),
        ('OFQ', {'symmetric': True, 'roles': ['weight']}),
        ('LSQ', {'per_channel': True, 'roles': ['qkv_in']}),
        ('RepQ', {'symmetric': True, 'roles': ['attn']}),
    ],
)
def test_a_grid_without_the_option(method, override):
    with pytest.raises(ValueError, match=r"quant\.overrides\[0\], pattern '\*', changes nothing: .* cannot act on"):
        backbone(quant({'pattern': '*', **override}, method=method))


@pytest.mark.parametrize(
    'override',
    [
        {'pattern': '*', 'a_bits': 4},
        {'pattern': '*', 'enabled': True},
        {'pattern': '*.query_key', 'w_bits': 4, 'a_bits': 4},
        {'pattern': PATCHES, 'w_bits': 4, 'a_bits': 4},
        {'pattern': DOWN, 'a_bits': 4, 'low_a_bits': 2},
    ],
)
def test_a_part_that_acts_is_enough_even_at_the_default(override):
    assert backbone(quant(override)).quant_method.overrides == [override]


@pytest.mark.parametrize('method', ['LSQ', 'OFQ', 'RepQ'])
def test_weights_per_layer_instead_of_per_channel(method):
    model = backbone(quant({'pattern': '*.ffn.layers.1', 'per_channel': False}, method=method))
    block = model.stages[0].blocks[0]
    assert block.ffn.layers[1].weight_quant.axis is None
    assert block.attn.w_msa.proj.weight_quant.axis == 0


def test_a_whole_detector_is_named_by_its_own_field():
    def build(**options):
        check_overrides(build_method({'method': 'RepQ', 'a_bits': 4, **options}, 'detector_quant'), HEADS)

    build(overrides=[{'pattern': 'neck.*', 'a_bits': 8}])
    for options, message in (
        ({'overrides': [{'pattern': 'head.*', 'a_bits': 8}]}, r"overrides pattern 'head\.\*' matches no layer"),
        ({'overrides': [{'pattern': '*', 'roles': ['q'], 'a_bits': 8}]}, r'overrides\[0\].* changes nothing: roles='),
        (
            {'overrides': [{'pattern': '*', 'low_a_bits': 2}]},
            r'overrides\[0\].* changes nothing: low_a_bits cannot act',
        ),
        ({'overrides': [{'pattern': '*', 'enabled': 'no'}]}, r"overrides\[0\]\.enabled='no'"),
        ({'low_a_bits': 2}, r'low_a_bits=2 has no effect: none of its layers has a low branch; leave it out'),
        ({'method': 'LSQ', 'w_symmetric': True}, r'w_symmetric=True has no effect'),
    ):
        with pytest.raises(ValueError, match=r'^detector_quant\.' + message):
            build(**options)
    method = build_method(quant({'pattern': '*', 'low_a_bits': 6}), 'detector_quant')
    with pytest.raises(ValueError, match=r"^detector_quant\.overrides '\*'\.low_a_bits=6 is above a_bits=4"):
        method.roles('stages.0.blocks.0.attn.w_msa.qkv')
    with pytest.raises(ValueError, match=r'^detector_quant\.method=MinMax cannot calibrate the low branch alone'):
        method.calibrate_low(None, None)
