"""The config inside a checkpoint: what a refusal advises loads, equal configs are equal however they are written."""

from __future__ import annotations

import ast
import re

import numpy as np
import pytest
import torch
from tiny_backbone import backbone
from torch import nn

from mixaq_mmdet.quantization import DETECTOR_BUFFER, build_method, check_saved_config, encode_config
from mixaq_mmdet.quantization.state import CONFIG_BUFFER, decode_config

WIDER = {'method': 'MinMax', 'w_bits': 4, 'a_bits': 4, 'overrides': [{'pattern': 'stages.1.*', 'a_bits': 8}]}


def advised(error):
    """The dict that a message proposes for ``quant``."""
    return ast.literal_eval(re.search(r'quant=({.*}), or load a float', str(error))[1])


def as_saved_before(state):
    """The state as earlier versions wrote it: with a number where low bits follow."""
    config = decode_config(state[CONFIG_BUFFER])
    if config['low_a_bits'] is None:
        config['low_a_bits'] = config['a_bits']
    return {**state, CONFIG_BUFFER: encode_config(config)}


@pytest.mark.parametrize('saved', [lambda state: state, as_saved_before], ids=['now', 'earlier'])
@pytest.mark.parametrize('present', [None, {**WIDER, 'w_bits': 8}], ids=['absent', 'other'])
@pytest.mark.parametrize('low', [{}, {'low_a_bits': 4}, {'low_a_bits': 2}], ids=str)
def test_the_config_that_a_refusal_advises_loads(saved, present, low):
    state = saved(backbone({**WIDER, **low}).state_dict())
    with pytest.raises(ValueError, match=r'model\.backbone\.quant') as refusal:
        backbone(present).load_state_dict(state)
    assert backbone(advised(refusal.value)).load_state_dict(state, strict=True)


@pytest.mark.parametrize('override', [{'pattern': 'stages.1.*', 'a_bits': 3}, {'pattern': 'stages.1.*', 'w_bits': 8}])
@pytest.mark.parametrize('saved', [lambda state: state, as_saved_before], ids=['now', 'earlier'])
def test_low_bits_given_as_what_they_follow_anyway_are_no_difference(saved, override):
    quant = {**WIDER, 'overrides': [override]}
    state = saved(backbone(quant).state_dict())
    for own in (quant, {**quant, 'low_a_bits': 4}, {**quant, 'low_a_bits': None}):
        assert backbone(own).load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ('saved', 'present'),
    [
        ({'method': 'Percentile', 'percentile': 99.0}, {'method': 'Percentile', 'percentile': 99}),
        ({'method': 'RepQ', 'percentiles': (0.99, 1.0)}, {'method': 'RepQ', 'percentiles': [0.99, 1]}),
    ],
)
def test_equal_configs_of_another_text_load_strictly(saved, present):
    model = backbone(present)
    own = model.quant_config.clone()
    assert model.load_state_dict(backbone(saved).state_dict(), strict=True)
    assert torch.equal(model.quant_config, own)


def test_low_bits_that_earlier_files_gave_to_heads_are_no_difference():
    def carrier(low):
        module = nn.Module()
        config = build_method({'method': 'RepQ', 'w_bits': 4, 'low_a_bits': low}, 'detector_quant').config
        module.register_buffer(DETECTOR_BUFFER, encode_config(config))
        return module

    state = carrier(4).state_dict()
    check_saved_config(carrier(None), dict(state), '', DETECTOR_BUFFER)
    with pytest.raises(ValueError, match=r'model\.detector_quant is absent') as refusal:
        check_saved_config(nn.Module(), dict(state), '', DETECTOR_BUFFER)
    assert advised(refusal.value)['low_a_bits'] is None


def test_a_config_that_is_no_dict_is_damaged():
    state = {**backbone(WIDER).state_dict(), CONFIG_BUFFER: torch.tensor(list(b'[4]'), dtype=torch.uint8)}
    with pytest.raises(ValueError, match='is damaged'):
        backbone(WIDER).load_state_dict(state)


def test_scalars_of_numpy_and_torch_are_numbers():
    given = {
        'method': 'AIQViT',
        'w_bits': np.int64(4),
        'a_bits': torch.tensor(8),
        'low_a_bits': np.uint8(4),
        'w_symmetric': np.bool_(True),
        'lr': np.float32(0.5),
        'ranks': np.array([2, 4]),
        'percentiles': [np.float64(0.75), torch.tensor(1.0)],
        'overrides': [{'pattern': '*', 'w_bits': np.int64(3), 'enabled': np.bool_(True)}],
    }
    usual = {
        'method': 'AIQViT',
        'w_bits': 4,
        'a_bits': 8,
        'low_a_bits': 4,
        'w_symmetric': True,
        'lr': 0.5,
        'ranks': [2, 4],
        'percentiles': [0.75, 1.0],
        'overrides': [{'pattern': '*', 'w_bits': 3, 'enabled': True}],
    }
    assert torch.equal(encode_config(build_method(given).config), encode_config(build_method(usual).config))
    assert backbone(usual).load_state_dict(backbone(given).state_dict(), strict=True)


def test_ofq_files_from_before_its_options_load_with_the_values_they_were_made_with():
    before = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'edge_weights': 'StatsQ', 'v_per_channel': False}
    state = backbone(before).state_dict()
    named = decode_config(state[CONFIG_BUFFER])
    state[CONFIG_BUFFER] = encode_config(
        {key: named[key] for key in named if key not in ('edge_weights', 'v_per_channel')}
    )
    assert backbone(before).load_state_dict(state, strict=True)
    differing = r"edge_weights='LSQ' \(checkpoint: 'StatsQ'\), v_per_channel=True \(checkpoint: False\)"
    with pytest.raises(ValueError, match=differing) as refusal:
        backbone({'method': 'OFQ', 'w_bits': 4, 'a_bits': 4}).load_state_dict(state)
    assert backbone(advised(refusal.value)).load_state_dict(state, strict=True)
