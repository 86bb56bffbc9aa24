"""ERQ: a smaller output error than RepQ's, weights exactly on their grids, both branches, what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_backbone import backbone, images, signal_to_noise

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import QuantLinear, build_method, quantizer_mode
from mixaq_mmdet.quantization.functional import dequantize, quantize

WIDE = {'embed_dims': 32, 'num_heads': (1, 2)}
BITS = {'w_bits': 4, 'a_bits': 4, 'low_a_bits': 3}


def calibrated(method='ERQ', **options):
    sizes = {key: options.pop(key) for key in WIDE if key in options}
    model = backbone({'method': method, **BITS, **options}, **sizes)
    Calibrator(model).run(images(3))
    return model


@pytest.fixture(scope='module')
def erq():
    """Read only."""
    return calibrated()


def solved_layers(model):
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, QuantLinear) and 'stages' in path}


def test_weights_lie_exactly_on_their_grids(erq):
    layers = solved_layers(erq)
    assert len(layers) == 3 * 4 + 1
    for path, layer in layers.items():
        quantizer = layer.weight_quant
        codes = quantize(layer.weight, quantizer.scale, quantizer.zero_point, quantizer.bits, quantizer.axis)
        values = dequantize(codes, quantizer.scale, quantizer.zero_point, quantizer.axis)
        assert torch.equal(layer.weight, values), path
        assert torch.equal(layer.quantized_weight(), layer.weight), path
        assert len(codes.unique()) > 8, path


@pytest.fixture(scope='module')
def wide_pair():
    """Calibrated models of 32 channels, by ERQ and by RepQ."""
    return calibrated(**WIDE), calibrated('RepQ', **WIDE)


@pytest.mark.parametrize('low', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('seed', [5, 77], ids=['calibration images', 'other images'])
def test_the_output_error_is_below_repqs(wide_pair, low, seed):
    reference = backbone(**WIDE)

    def noise(model, x):
        model.set_ratios(low)
        with torch.no_grad():
            return signal_to_noise(reference(x), model(x))

    for x in images(3, seed=seed):
        ours, theirs = (noise(model, x) for model in wide_pair)
        assert ours > theirs + 0.5


def test_activation_grids_are_those_of_repq_in_the_first_block(erq):
    """What changes are weights and biases: the grids of a block are fitted before."""
    other = calibrated('RepQ').state_dict()
    start = 'stages.0.blocks.0.'
    grids = [n for n in other if n.startswith(start) and n.endswith('scale') and 'weight_quant' not in n]
    assert len(grids) == 2 * 8
    for name in grids:
        assert torch.equal(erq.state_dict()[name], other[name]), name
    assert not torch.equal(erq.state_dict()[f'{start}attn.w_msa.qkv.bias'], other[f'{start}attn.w_msa.qkv.bias'])


def test_the_share_of_low_windows_reaches_the_weights():
    name = 'stages.0.blocks.0.attn.w_msa.qkv.bias'
    high, half, low = (calibrated(low_share=share).state_dict()[name] for share in (0.0, 0.5, 1.0))
    assert not torch.equal(high, half)
    assert (half - low).norm() < (high - low).norm()


def test_layers_left_float_keep_what_they_can():
    """A float weight still answers its quantized inputs; float inputs leave the weight's rounding alone to answer."""
    overrides = [
        {'pattern': 'stages.0.blocks.0.ffn.layers.1', 'roles': ['weight'], 'enabled': False},
        {'pattern': 'stages.0.blocks.1.ffn.layers.1', 'roles': ['fc2_in'], 'enabled': False},
        {'pattern': 'stages.1.*', 'enabled': False},
    ]
    model = calibrated(overrides=overrides)
    float_model = backbone()
    name = 'stages.0.blocks.0.ffn.layers.1'
    changed = (model.get_submodule(name).weight - float_model.get_submodule(name).weight).detach()
    assert 0 < float(changed.abs().max()) < 0.5
    on_grid = model.get_submodule('stages.0.blocks.1.ffn.layers.1')
    assert torch.equal(on_grid.weight, on_grid.quantized_weight())
    name = 'stages.1.blocks.0.attn.w_msa.proj.weight'
    assert torch.equal(model.state_dict()[name], float_model.state_dict()[name])


def test_eight_bits_leave_the_float_function_nearly_alone():
    model = calibrated(w_bits=8, a_bits=8, low_a_bits=8)
    with torch.no_grad(), quantizer_mode(model, 'float'):
        assert signal_to_noise(backbone()(images()[0]), model(images()[0])) > 30


def test_progress_counts_every_pass():
    ticks = []
    model = backbone({'method': 'ERQ', **BITS})
    calibrator = Calibrator(model, tick=lambda: ticks.append(1))
    calibrator.run(images(2))
    assert len(ticks) == calibrator.steps(2)


def test_a_second_calibration_is_refused(erq):
    with pytest.raises(ValueError, match=r'ERQ has calibrated .*qkv.* already.*load the float checkpoint'):
        Calibrator(erq).run(images(1))


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'ridge': 0}, r'quant\.ridge=0 must be'),
        ({'rounding_ridge': -1}, r'quant\.rounding_ridge=-1 must be'),
        ({'refinements': 1.5}, r'quant\.refinements=1\.5 must be a whole number'),
        ({'low_share': 1.1}, r'quant\.low_share=1\.1 must lie in \[0, 1\]'),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        build_method({'method': 'ERQ', **option})
