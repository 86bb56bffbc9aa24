"""Quantized layers against float layers that hold dequantized numbers; branches; the frozen state."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixaq_mmdet.quantization import BranchQuantizers, QuantMatmul, Split, held_weights, quantizer_mode
from mixaq_mmdet.quantization.methods.minmax import MinMax
from mixaq_mmdet.quantization.observers import MinMaxRange, Samples
from mixaq_mmdet.quantization.prepare import quant_layer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer


def calibrated(module, x_high, x_low=None):
    """Give all quantizers of a layer the full range of what they would see."""
    MinMax().fit_weights(module)
    for branches in (m for m in module.modules() if isinstance(m, BranchQuantizers)):
        for name, quantizer in branches.branches().items():
            x = x_low if name == 'low' and x_low is not None else x_high
            quantizer.fit(Samples.exact(x, quantizer.axis, name), MinMaxRange())
    return module


def linear(path='stages.0.blocks.0.ffn.layers.1', **method):
    torch.manual_seed(0)
    return quant_layer(nn.Linear(6, 4), path, MinMax(**method).roles(path))


@pytest.fixture
def x():
    return torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(1))


def test_linear_equals_a_float_layer_of_dequantized_numbers(x):
    layer = calibrated(linear(w_bits=4, a_bits=4, low_a_bits=2), x)
    high, low = layer.input_quant.high, layer.input_quant.low
    expected = torch.cat([high(x[:2]), low(x[2:])]) @ layer.weight_quant(layer.weight).t() + layer.bias
    with torch.no_grad():
        torch.testing.assert_close(layer(x, Split(2)), expected)
    torch.testing.assert_close(layer(x, Split(2)), expected)
    torch.testing.assert_close(layer(x), F.linear(high(x), layer.weight_quant(layer.weight), layer.bias))


@pytest.mark.parametrize('high', [0, 2, 5])
def test_branches_with_the_same_grid_do_not_depend_on_the_split(x, high):
    layer = calibrated(linear(), x)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(layer(x, Split(high)), layer(x, Split(5)))


def test_conv_equals_a_float_layer_of_dequantized_numbers():
    torch.manual_seed(0)
    stock = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1, groups=2)
    path = 'neck.fpn_convs.0.conv'
    layer = quant_layer(stock, path, MinMax(w_bits=4).roles(path))
    x = torch.randn(2, 4, 9, 8)
    calibrated(layer, x)
    assert layer.weight is stock.weight
    weight = layer.weight_quant(layer.weight)
    expected = F.conv2d(layer.input_quant(x), weight, layer.bias, stride=2, padding=1, groups=2)
    torch.testing.assert_close(layer(x), expected)
    assert set(layer.state_dict()) > {'weight', 'bias', 'weight_quant.scale', 'input_quant.high.scale'}


def test_matmul_quantizes_both_operands():
    x = torch.randn(4, 2, 5, 3)
    product = QuantMatmul(
        *((r, BranchQuantizers(lambda b: UniformQuantizer(bits=4 if b == 'high' else 2, name=b), True)) for r in 'qk')
    )
    calibrated(product, x)
    q, k = product.operands['q'], product.operands['k']
    expected = q(x, Split(3)) @ k(x.transpose(-1, -2), Split(3))
    torch.testing.assert_close(product(x, x.transpose(-1, -2), Split(3)), expected)
    assert not torch.equal(expected, product(x, x.transpose(-1, -2), Split(4)))


def test_both_branches_get_gradients_and_share_the_weight(x):
    layer = calibrated(linear(), x)
    calls = []
    layer.weight_quant.register_forward_hook(lambda *_: calls.append(1))
    layer(x, Split(2)).sum().backward()
    assert len(calls) == 1
    assert float(layer.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ('token_axis', 'shape'), [(-2, (3, 5, 4)), (-2, (3, 2, 5, 4)), (-1, (3, 2, 4, 5))], ids=['linear', 'heads', 'keys']
)
def test_observers_leave_padding_tokens_out(token_axis, shape):
    branches = BranchQuantizers(lambda b: UniformQuantizer(bits=8, name=b), True, token_axis)
    x = torch.rand(shape)
    real = torch.ones(3, 5, dtype=torch.bool)
    real[0, 3:] = real[2, 4:] = False
    tokens = x.movedim(token_axis, 1)
    tokens[~real] = 100.0
    seen = {}
    with quantizer_mode(branches, 'observe'):
        for quantizer in branches.branches().values():
            quantizer.start_ranges()
        assert torch.equal(branches(x, Split(1, real=real)), x)
        seen = {name: quantizer.observer for name, quantizer in branches.branches().items()}
    assert seen['high'].high == tokens[:1][real[:1]].max()
    assert seen['low'].high == tokens[1:][real[1:]].max()
    assert int(seen['high'].count) == 3 * (x.numel() // 15)


class TestFrozenWeights:
    @pytest.fixture
    def layer(self, x):
        return calibrated(linear(w_bits=2), x).eval()

    def test_same_result_until_unfrozen(self, layer, x):
        before = layer(x)
        layer.freeze()
        assert torch.equal(layer(x), before)
        with torch.no_grad():
            layer.weight.mul_(-1)
        assert torch.equal(layer(x), before)
        layer.unfreeze()
        assert not torch.equal(layer(x), before)

    @pytest.mark.parametrize(
        'drop',
        [
            lambda layer: layer.train().eval(),
            lambda layer: layer.load_state_dict(layer.state_dict()),
            lambda layer: layer.double().float(),
        ],
        ids=['train', 'load', 'dtype'],
    )
    def test_dropped(self, layer, x, drop):
        layer.freeze()
        drop(layer)
        with torch.no_grad():
            layer.weight.zero_()
        assert torch.equal(layer(x), layer.bias.expand(5, 3, 4))

    def test_refused_while_training(self, layer):
        with pytest.raises(ValueError, match=r'call eval\(\) first'):
            layer.train().freeze()

    def test_float_mode_is_float_all_the_same(self, layer, x):
        layer.freeze()
        with quantizer_mode(layer, 'float'):
            assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))

    def test_deepcopy(self, layer, x):
        layer.freeze()
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))

    def test_held_for_one_forward_only(self, layer, x):
        calls = []
        layer.weight_quant.register_forward_hook(lambda *_: calls.append(1))
        with torch.no_grad(), held_weights(nn.Sequential(layer)):
            assert torch.equal(layer(x), layer(x))
        assert len(calls) == 1
        layer(x)
        assert len(calls) == 2
        with held_weights(layer):  # with gradients nothing is held
            assert layer._frozen is None


def test_added_bias_is_zero_and_float_files_load_strictly(x):
    stock = nn.Linear(6, 4, bias=False)
    path = 'stages.0.downsample.reduction'
    layer = quant_layer(stock, path, MinMax().roles(path), add_bias=True)
    assert not layer.bias.any()
    layer.load_state_dict({'weight': torch.ones(4, 6)}, strict=True)
    assert torch.equal(layer.weight, torch.ones(4, 6))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_quantizers_compute_in_float32_under_autocast(x, dtype):
    layer = calibrated(linear(), x)
    seen = []
    layer.weight_quant.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.autocast('cpu', dtype=dtype), torch.no_grad():
        out = layer(x, Split(2))
    assert out.dtype == dtype
    assert torch.equal(seen[0], layer.weight_quant(layer.weight))
    torch.testing.assert_close(out.float(), layer(x, Split(2)), rtol=3e-2, atol=3e-2)


def test_partial_overrides_leave_roles_float(x):
    path = 'stages.0.blocks.0.ffn.layers.1'
    method = MinMax(w_bits=2, a_bits=2, overrides=[{'pattern': '*', 'roles': ['weight'], 'enabled': False}])
    layer = quant_layer(nn.Linear(6, 4), path, method.roles(path))
    calibrated(layer, x)
    expected = F.linear(layer.input_quant(x), layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
