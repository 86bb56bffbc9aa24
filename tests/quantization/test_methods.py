"""The method interface: configs to roles, overrides, state in checkpoints; every registered method calibrates."""

import pytest
import torch
from tiny_backbone import backbone, images, signal_to_noise

from mixaq_mmdet.checks import constructor_arguments
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import NotCalibratedError, QuantLinear, build_method, quantizer_mode
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.quantization.roles import ROLES, roles_of
from mixaq_mmdet.quantization.state import decode_config
from mixaq_mmdet.registry import QUANT_METHODS

METHODS = ['MinMax', 'Percentile', 'MSE', 'RepQ', 'MixQViT', 'AIQViT', 'ERQ']
METHODS += ['AdaLog', 'PTQ4ViT', 'NoisyQuant', 'FIMAQ', 'APHQ', 'GLFQ', 'LSQ', 'OFQ']
CLIPS_WEIGHTS = {'OFQ': 12}  # dB at 8 bits: StatsQ cuts off at 2 mean|W| until training has answered
SHORT = {
    **{name: {'steps': 1} for name in ('FIMAQ', 'APHQ', 'GLFQ')},
    'AIQViT': {'steps': 2, 'search_steps': 1},
    'AdaLog': {'keep': 2, 'expansions': 0, 'rounds': 1, 'output_expansions': 0, 'rows': 16},
    'PTQ4ViT': {'candidates': 6, 'rounds': 1, 'rows': 16},
    'NoisyQuant': {'shift_steps': 2, 'noise_steps': 2, 'rows': 16},
}
QUANT = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}


def calibrated(quant, **options):
    model = backbone(quant, **options)
    Calibrator(model).run(images())
    return model


@pytest.mark.parametrize('method', METHODS)
class TestEveryMethod:
    def test_eight_bits_are_close_to_float(self, method):
        x = images()[0]
        model = calibrated({'method': method, 'w_bits': 8, 'a_bits': 8, **SHORT.get(method, {})})
        with torch.no_grad():
            assert signal_to_noise(backbone()(x), model(x)) > CLIPS_WEIGHTS.get(method, 20)

    @torch.no_grad()
    def test_equal_branches_make_the_low_ratio_irrelevant(self, method):
        """With equal bits, steps and zero points in both branches every low ratio gives the output of ratio 0."""
        model = calibrated({'method': method, 'w_bits': 4, 'a_bits': 4, **SHORT.get(method, {})})
        state = model.state_dict()
        for name, value in state.items():
            if '.low.' in name:
                value.copy_(state[name.replace('.low.', '.high.')])
        for x in images():
            model.set_ratios(0.0)
            reference = model(x)
            for ratio in (0.3, 0.5, 1.0):
                model.set_ratios(ratio)
                for a, b in zip(reference, model(x), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_checkpoint_round_trip(self, method):
        quant = {'method': method, 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4, **SHORT.get(method, {})}
        source, target = calibrated(quant, low_ratios=0.5), backbone(quant, seed=9, low_ratios=0.5)
        assert target.load_state_dict(source.state_dict(), strict=True)
        with torch.no_grad():
            for a, b in zip(source(images()[0]), target(images()[0]), strict=True):
                assert torch.equal(a, b)

    def test_float_file_loads_strictly_and_stays_uncalibrated(self, method):
        model = calibrated({'method': method, **SHORT.get(method, {})})
        float_state = {k: v for k, v in backbone(seed=3).state_dict().items() if '_low' not in k}
        model.load_state_dict(float_state, strict=True)
        with pytest.raises(NotCalibratedError, match=r'^not calibrated: patch_embed\.projection\.patch_in\.high'):
            model(images()[0])
        with torch.no_grad(), quantizer_mode(model, 'float'):
            assert signal_to_noise(backbone(seed=3)(images()[0]), model(images()[0])) > 100

    def test_config_round_trip(self, method):
        built = build_method({'method': method, 'w_bits': 3, 'overrides': [{'pattern': '*', 'a_bits': 6}]})
        again = build_method(built.config)
        assert again.config == built.config
        assert set(built.config) == {'method', *constructor_arguments(type(built).__mro__)}


def test_every_registered_method_is_tested():
    assert set(METHODS) == {name for name in QUANT_METHODS.module_dict if not name.startswith('Test')}


@pytest.mark.parametrize(
    ('path', 'roles'),
    [
        ('patch_embed.projection', ('weight', 'patch_in')),
        ('stages.0.blocks.1.attn.w_msa.qkv', ('weight', 'qkv_in')),
        ('stages.0.blocks.1.attn.w_msa.query_key', ('q', 'k')),
        ('stages.0.blocks.1.attn.w_msa.attention_value', ('attn', 'v')),
        ('stages.0.blocks.1.attn.w_msa.proj', ('weight', 'proj_in')),
        ('stages.0.blocks.1.ffn.layers.0.0', ('weight', 'fc1_in')),
        ('stages.0.blocks.1.ffn.layers.1', ('weight', 'fc2_in')),
        ('stages.0.downsample.reduction', ('weight', 'merge_in')),
        ('roi_head.bbox_head.shared_fcs.0', ('weight', 'head_in')),
    ],
)
def test_roles_of_every_layer(path, roles):
    assert roles_of(path) == roles
    assert set(roles) <= set(ROLES)


def test_bits_reach_the_quantizers():
    model = backbone({'method': 'RepQ', 'w_bits': 3, 'a_bits': 6, 'low_a_bits': 2})
    bits = {quantizer.name: quantizer.bits for quantizer in model.modules() if isinstance(quantizer, Quantizer)}
    assert bits.pop('patch_embed.projection.patch_in.high') == 8
    for name, value in bits.items():
        assert value == (3 if name.endswith('weight') else 2 if name.endswith('low') else 6), name


def test_overrides_by_name_pattern():
    overrides = [
        {'pattern': 'stages.0.*', 'w_bits': 2, 'a_bits': 3},
        {'pattern': '*.ffn.layers.1', 'roles': ['fc2_in'], 'a_bits': 7, 'low_a_bits': 5, 'symmetric': True},
        {'pattern': 'stages.1.blocks.0.attn.*', 'enabled': False},
        {'pattern': '*.ffn.layers.0.0', 'roles': ['weight'], 'per_channel': False},
    ]
    model = backbone({**QUANT, 'overrides': overrides})
    fc2 = model.stages[0].blocks[0].ffn.layers[1]
    assert fc2.weight_quant.bits == 2
    assert (fc2.input_quant.high.bits, fc2.input_quant.low.bits) == (7, 5)
    assert fc2.input_quant.high.symmetric
    fc1 = model.stages[0].blocks[0].ffn.layers[0][0]
    assert (fc1.input_quant.high.bits, fc1.input_quant.low.bits) == (3, 3)
    assert fc1.weight_quant.scale.dim() == 0
    attention = model.stages[1].blocks[0].attn.w_msa
    assert not isinstance(attention.qkv, QuantLinear)
    assert attention.query_key is None
    Calibrator(model).run(images(1))
    assert torch.isfinite(model(images()[0])[0]).all()


@pytest.mark.parametrize(
    ('quant', 'message'),
    [
        ({'method': 'RepX'}, r"quant\.method='RepX' is unknown; use one of \['"),
        ({}, r'quant\.method=None is unknown'),
        (
            {'method': 'MinMax', 'wbits': 4},
            r"quant has unknown keys \['wbits'\] for method MinMax; use \['method', 'w_bits'",
        ),
        ({'method': 'MinMax', 'w_bits': 9}, r'quant\.w_bits=9 is not supported'),
        ({'method': 'MinMax', 'a_bits': 4, 'low_a_bits': 8}, r'quant\.low_a_bits=8 is above a_bits=4'),
        ({'method': 'MinMax', 'overrides': [{'a_bits': 4}]}, r'quant\.overrides\[0\]\.pattern is missing'),
        (
            {'method': 'MinMax', 'overrides': [{'pattern': '*', 'bits': 4}]},
            r"overrides\[0\] has unknown keys \['bits'\]",
        ),
        ({'method': 'MinMax', 'overrides': [{'pattern': 'stage.*', 'a_bits': 4}]}, "'stage.*' matches no layer"),
        ({'method': 'MinMax', 'overrides': [{'pattern': '*', 'roles': ['x']}]}, r"overrides\[0\]\.roles has 'x'"),
        ({'method': 'Percentile', 'percentile': 10}, r'percentile=10 must lie in'),
        ({'method': 'MinMax', 'w_symmetric': 'no'}, r"quant\.w_symmetric='no' must be True or False"),
        ({'method': 'MinMax', 'a_symmetric': 1}, r'quant\.a_symmetric=1 must be True or False'),
        ({'method': 'MinMax', 'w_per_channel': None}, r'quant\.w_per_channel=None must be True or False'),
        ({'method': 'AIQViT', 'focusing': 'no'}, r"quant\.focusing='no' must be True or False"),
        ({'method': 'AIQViT', 'curriculum': 'no'}, r"quant\.curriculum='no' must be True or False"),
        ({'method': 'LSQ', 'w_symmetric': True}, r'quant\.w_symmetric=True has no effect: no grid of LSQ'),
        ({'method': 'OFQ', 'a_symmetric': True}, r'quant\.a_symmetric=True has no effect: no grid of OFQ'),
    ],
)
def test_bad_configs(quant, message):
    with pytest.raises(ValueError, match=message):
        backbone(quant)


@pytest.mark.parametrize(
    ('saved', 'present', 'message'),
    [
        (QUANT, None, r'the checkpoint holds a quantized model, but model\.backbone\.quant is absent'),
        (QUANT, {**QUANT, 'method': 'MSE'}, r"differs from what the checkpoint was quantized with: method='MSE'"),
        (QUANT, {**QUANT, 'w_bits': 4}, r'w_bits=4 \(checkpoint: 8\)'),
        (QUANT, {**QUANT, 'low_a_bits': 2}, r'low_a_bits=2 \(checkpoint: 4\)'),
    ],
)
def test_files_of_another_quantization_are_refused(saved, present, message):
    state = backbone(saved).state_dict()
    with pytest.raises(ValueError, match=message):
        backbone(present).load_state_dict(state, strict=False)


def test_config_in_the_checkpoint_is_complete_and_readable():
    config = decode_config(backbone({'method': 'RepQ', 'w_bits': 4}).state_dict()['quant_config'])
    assert config['method'] == 'RepQ'
    assert (config['w_bits'], config['a_bits'], config['low_a_bits'], config['patch_bits']) == (4, 8, None, 8)


def test_low_bits_follow_the_high_ones_of_an_override_unless_they_were_given():
    def low(override=(), **bits):
        method = build_method({'method': 'RepQ', 'w_bits': 4, **bits, 'overrides': list(override)})
        return method.roles('stages.0.blocks.0.attn.w_msa.qkv')['qkv_in']

    wider = {'pattern': 'stages.0.*', 'a_bits': 8}
    assert low([wider], a_bits=4)['low_bits'] == 8
    assert low([wider], a_bits=4, low_a_bits=4)['low_bits'] == 4
    assert low([wider, {'pattern': '*', 'low_a_bits': 2}], a_bits=4)['low_bits'] == 2
    assert low([{'pattern': '*', 'low_a_bits': 2}, wider], a_bits=4)['low_bits'] == 2
    assert low([{'pattern': '*', 'a_bits': 3}], a_bits=8, low_a_bits=4)['low_bits'] == 3
    assert low(a_bits=4)['low_bits'] == 4
