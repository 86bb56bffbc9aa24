"""RepQ: the fold is exact, padding follows it, both branches are calibrated, and it beats plain grids."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_backbone import backbone, images, signal_to_noise
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import Split, build_method, quantizer_mode
from mixaq_mmdet.quantization.functional import affine_parameters, fake_quantize
from mixaq_mmdet.quantization.methods.repq import Fold, fold_into, reparameterise
from mixaq_mmdet.quantization.prepare import quant_layer
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

QUANT = {'method': 'RepQ', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
CHANNELS = 6


def norm_and_linear(generator):
    norm = nn.LayerNorm(CHANNELS)
    path = 'stages.0.blocks.0.attn.w_msa.qkv'
    linear = quant_layer(nn.Linear(CHANNELS, 5), path, build_method({'method': 'RepQ'}).roles(path))
    with torch.no_grad():
        for parameter in (*norm.parameters(), linear.weight, linear.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2)
    return norm, linear


@given(st.integers(0, 10000), st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_fold_is_exact(seed, bits):
    generator = torch.Generator().manual_seed(seed)
    norm, linear = norm_and_linear(generator)
    x = torch.randn(30, CHANNELS, generator=generator)
    outputs = norm(x).detach()
    low, high = outputs.amin(0), outputs.amax(0)
    scale, zero_point = affine_parameters(low, high, bits, include_zero=False)
    assume(scale.min() > 2e-3 * scale.max())
    per_channel = fake_quantize(outputs, scale, zero_point, bits, axis=-1)
    expected = per_channel @ linear.weight.t() + linear.bias
    expected_float = outputs @ linear.weight.t() + linear.bias

    common_scale, common_zero, ratio, shift = reparameterise(scale, zero_point, low, high)
    fold_into(Fold([norm], linear), ratio, shift)
    folded = norm(x)
    quantized = fake_quantize(folded, common_scale, common_zero, bits)

    def matches(actual, wanted):
        # the sum of the linear layer's terms is what float32 rounds relative to
        terms = folded.abs() @ linear.weight.abs().t() + linear.bias.abs()
        return bool(((actual - wanted).abs() <= 1e-6 * terms.max()).all())

    assert matches(folded @ linear.weight.t() + linear.bias, expected_float)
    # a value within float error of a rounding boundary may move by one step
    steps = (folded / common_scale + common_zero) % 1
    clear = ((steps - 0.5).abs() > 1e-3).all(dim=1)
    assert matches((quantized @ linear.weight.t() + linear.bias)[clear], expected[clear])
    assert bool(clear.any())
    assert int(linear.folded) == 1


def test_constant_channels_do_not_set_the_common_grid():
    low, high = torch.tensor([-1.0, -6.0, 0.0, 4.0]), torch.tensor([24.5, 70.5, 0.0, 4.0 + 1e-6])
    scale, zero_point = affine_parameters(low, high, 8, include_zero=False)
    common_scale, common_zero, ratio, shift = reparameterise(scale, zero_point, low, high)
    assert common_scale.item() == pytest.approx(0.2)
    assert common_zero.item() == 15
    # and constants arrive as they are
    folded = low / ratio - shift
    back = (fake_quantize(folded, common_scale, common_zero, 8) + shift) * ratio
    torch.testing.assert_close(back[2:], low[2:], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def calibrated():
    model = backbone(QUANT)
    Calibrator(model).run(images())
    return model


def test_folded_float_model_is_the_float_model(calibrated):
    """Norms, weights, biases and pad values moved together: without grids nothing has changed, padding included."""
    x = images()[0]
    for ratio in (0.0, 0.5, 1.0):
        calibrated.set_ratios(ratio)
        with torch.no_grad(), quantizer_mode(calibrated, 'float'):
            assert signal_to_noise(backbone()(x), calibrated(x)) > 100
    assert any(block.pad_value.abs().max() > 0.1 for stage in calibrated.stages for block in stage.blocks)
    assert any(int(m.folded) for m in calibrated.modules() if hasattr(m, 'folded'))


def test_calibrating_again_folds_the_padding_again():
    """A file of the backbone alone in a whole quantized detector is fitted a second time, on folded norms."""
    model = backbone(QUANT)
    Calibrator(model).run(images())
    Calibrator(model).run([image * 2 for image in images()])
    x = images()[0]
    for ratio in (0.0, 0.5):
        model.set_ratios(ratio)
        with torch.no_grad(), quantizer_mode(model, 'float'):
            assert signal_to_noise(backbone()(x), model(x)) > 100


def test_padding_tokens_reach_the_layer_as_their_constant(calibrated):
    """What stock pads with zero must mean zero after the fold, also where zero lies outside a channel's grid."""
    qkv = calibrated.stages[0].blocks[0].attn.w_msa.qkv
    pad = calibrated.stages[0].blocks[0].pad_value
    x = torch.randn(3, 16, 8)
    real = torch.ones(3, 16, dtype=torch.bool)
    real[:, 12:] = False
    x[~real] = pad
    with torch.no_grad():
        quantized = qkv.input_quant(x, Split(1, real=real))
        assert torch.equal(quantized[~real], x[~real])
        assert torch.equal(quantized[real], qkv.input_quant(x, Split(1))[real])
        # the layer's output for it is stock's output for zero, up to the rounding of the weights
        with quantizer_mode(calibrated, 'float'):
            stock = backbone().stages[0].blocks[0].attn.w_msa.qkv.bias
            torch.testing.assert_close(qkv(x, Split(1, real=real))[0, -1], stock, rtol=1e-4, atol=1e-5)


def test_every_quantizer_of_both_branches_is_calibrated(calibrated):
    quantizers = [m for m in calibrated.modules() if isinstance(m, Quantizer)]
    assert all(quantizer.ready for quantizer in quantizers)
    assert sum(quantizer.branch == 'low' for quantizer in quantizers) == 3 * 8
    low = calibrated.stages[0].blocks[0].attn.w_msa.qkv.input_quant.low
    assert low.bits == 4


def test_calibration_does_not_depend_on_the_configured_ratios(calibrated):
    other = backbone(QUANT, low_ratios=0.8)
    Calibrator(other).run(images())
    state = calibrated.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_more_bits_are_closer_to_float_and_low_windows_cost_accuracy():
    x = images()[0]
    reference = backbone()(x)

    def noise(ratio=0.0, **quant):
        model = backbone({**QUANT, **quant})
        Calibrator(model).run(images())
        model.set_ratios(ratio)
        with torch.no_grad():
            return signal_to_noise(reference, model(x))

    by_bits = [noise(a_bits=bits, low_a_bits=bits) for bits in (3, 4, 6)]
    assert by_bits == sorted(by_bits)
    by_ratio = [noise(ratio) for ratio in (1.0, 0.5, 0.0)]
    assert by_ratio == sorted(by_ratio)
    assert noise(a_bits=4) > noise(a_bits=4, method='MinMax') + 1


def test_uneven_channels_are_what_the_fold_is_for():
    """Scale one LayerNorm channel by 30: per-tensor grids lose the others, the fold does not."""

    def noise(method):
        model, reference = backbone({'method': method, 'a_bits': 4, 'w_bits': 8}), backbone()
        for net in (model, reference):
            for stage in net.stages:
                for block in stage.blocks:
                    with torch.no_grad():
                        for norm in (block.norm1, block.norm1_low):
                            norm.weight[0] *= 30
                        block.attn.w_msa.qkv.weight[:, 0] /= 30
        Calibrator(model).run(images())
        with torch.no_grad():
            return signal_to_noise(reference(images()[0]), model(images()[0]))

    assert noise('RepQ') > noise('MinMax') + 3


@pytest.mark.parametrize('options', [{'patch_norm': False}, {'qkv_bias': False}])
def test_backbones_without_a_norm_or_bias(options):
    model, reference = backbone(QUANT, **options), backbone(**options)
    Calibrator(model).run(images(1))
    with torch.no_grad():
        assert signal_to_noise(reference(images()[0]), model(images()[0])) > 20


def test_two_bit_low_windows_keep_small_attention_probabilities():
    """Near the largest probability a 2-bit log-sqrt2 grid ends 1.5 octaves down, where most attention is lost."""
    model = backbone({**QUANT, 'a_bits': 4, 'low_a_bits': 2})
    noise = Calibrator(model).run(images())
    for name in (name for name in noise if name.endswith('attn.low')):
        high = name.replace('.low', '.high')
        assert noise[name] > 7, name
        assert noise[name] < noise[high]


def test_symmetric_activations_are_symmetric_after_layer_norm_too():
    """With equal zero points in all channels the fold moves nothing but the scales, and stays exact."""
    model = backbone({**QUANT, 'a_symmetric': True})
    Calibrator(model).run(images())
    grids = [m for m in model.modules() if isinstance(m, UniformQuantizer) and m.role != 'weight']
    assert {grid.role for grid in grids} >= {'qkv_in', 'fc1_in', 'merge_in', 'v'}
    assert all(grid.zero_point == 2 ** (grid.bits - 1) for grid in grids)
    x = images()[0]
    with torch.no_grad():
        assert signal_to_noise(backbone()(x), model(x)) > 20
        with quantizer_mode(model, 'float'):
            assert signal_to_noise(backbone()(x), model(x)) > 100
