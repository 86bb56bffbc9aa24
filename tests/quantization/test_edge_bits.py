"""``edge_bits``: bits of the patch embedding and of patch merging, in every method and both scopes."""

from __future__ import annotations

import pytest
from mmengine.registry import MODELS, init_default_scope
from tiny_backbone import backbone, images
from tiny_detector import tiny_mask_rcnn

from mixaq_mmdet import quantize
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.models.backbone_cost import backbone_bops
from mixaq_mmdet.models.quant_detector import build_quant_detector
from mixaq_mmdet.quantization import CONFIG_BUFFER, DETECTOR_BUFFER, build_method, encode_config
from mixaq_mmdet.quantization.methods import methods_that
from mixaq_mmdet.quantization.state import decode_config

EMBEDDING, MERGING, INNER = 'patch_embed.projection', 'stages.0.downsample.reduction', 'stages.0.blocks.0.ffn.layers.1'
W4A3 = {'w_bits': 4, 'a_bits': 3, 'low_a_bits': 2}


def bits(method, path):
    return {role: config['bits'] for role, config in method.roles(path).items()}


@pytest.mark.parametrize('name', methods_that('name'))
def test_edges_have_their_bits_in_every_method(name):
    method = build_method({'method': name, **W4A3, 'edge_bits': 6})
    assert bits(method, EMBEDDING) == {'weight': 6, 'patch_in': 8}, 'the image keeps patch_bits'
    assert bits(method, MERGING) == {'weight': 6, 'merge_in': 6}
    assert bits(method, INNER) == {'weight': 4, 'fc2_in': 3}
    plain = build_method({'method': name, **W4A3})
    assert bits(plain, MERGING) == {'weight': 4, 'merge_in': 3}
    assert bits(plain, EMBEDDING)['weight'] == (8 if plain.trained else 4)


def test_an_override_has_the_last_word():
    overrides = [{'pattern': '*.downsample.*', 'w_bits': 5}]
    method = build_method({'method': 'RepQ', **W4A3, 'edge_bits': 8, 'overrides': overrides})
    assert bits(method, MERGING) == {'weight': 5, 'merge_in': 8}


def test_a_trained_merging_at_eight_bits_is_not_cut_off():
    grids = [build_method({'method': 'OFQ', **W4A3, 'edge_bits': e}).roles(MERGING)['weight'] for e in (None, 8)]
    assert [grid['type'] for grid in grids] == ['Statistic', 'Learned']


def test_checkpoints_carry_it():
    source = backbone({'method': 'MinMax', 'w_bits': 4, 'edge_bits': 8})
    with pytest.raises(ValueError, match=r'edge_bits=None \(checkpoint: 8\)'):
        backbone({'method': 'MinMax', 'w_bits': 4}).load_state_dict(source.state_dict())
    backbone({'method': 'MinMax', 'w_bits': 4, 'edge_bits': 8}).load_state_dict(source.state_dict())


@pytest.mark.parametrize('name', ['RepQ', 'OFQ'])
def test_files_from_before_it_load(name):
    """OFQ says itself what its own options were, and does not repeat those of every method."""
    model = backbone({'method': name, 'w_bits': 4})
    old = {key: value for key, value in decode_config(model.quant_config).items() if key != 'edge_bits'}
    backbone({'method': name, 'w_bits': 4}).load_state_dict({**model.state_dict(), CONFIG_BUFFER: encode_config(old)})


def test_the_backbone_of_a_whole_detector_has_them_and_its_heads_do_not():
    init_default_scope('mmdet')
    detector = MODELS.build(tiny_mask_rcnn())
    quantize(detector, 'RepQ', w_bits=4, a_bits=4, low_a_bits=2, edge_bits=8, scope='detector')
    assert detector.backbone.stages[0].downsample.reduction.weight_quant.bits == 8
    assert detector.neck.lateral_convs[0].conv.weight_quant.bits == 4
    assert decode_config(getattr(detector.backbone, DETECTOR_BUFFER))['edge_bits'] is None


def test_heads_alone_have_no_edges():
    init_default_scope('mmdet')
    config = {key: value for key, value in tiny_mask_rcnn().items() if key != 'type'}
    with pytest.raises(ValueError, match=r'detector_quant\.edge_bits=8 has no effect: none of its layers is a patch'):
        build_quant_detector('MaskRCNN', {'method': 'RepQ', 'edge_bits': 8}, **config)


def test_costs_count_them():
    plain, edges = (backbone({'method': 'RepQ', 'w_bits': 4, 'a_bits': 4, 'edge_bits': e}) for e in (None, 8))
    difference = backbone_bops(edges, (64, 64)).bit_operations() - backbone_bops(plain, (64, 64)).bit_operations()
    layers = {layer.name: layer.executed for layer in backbone_bops(plain, (64, 64)).layers}
    assert difference == layers[MERGING] * (8 * 8 - 4 * 4) + layers[EMBEDDING] * (8 * 8 - 4 * 8)


def test_finer_edges_are_closer():
    noise = {}
    for edge in (3, 8):
        model = backbone({'method': 'RepQ', 'w_bits': 8, 'a_bits': 8, 'edge_bits': edge})
        noise[edge] = Calibrator(model).run(images(1))[f'{MERGING}.merge_in.high']
    assert noise[8] > noise[3] + 20
