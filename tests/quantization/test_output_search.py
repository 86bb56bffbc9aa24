"""Samples of what layers read, and the search of grids by the error of what they give."""

from __future__ import annotations

import pytest
import torch
from tiny_backbone import backbone, images
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import Method, QuantConv2d, QuantMatmul
from mixaq_mmdet.quantization.layers import BranchQuantizers, to_quant_conv2d, to_quant_linear
from mixaq_mmdet.quantization.observers import MinMaxRange, Samples
from mixaq_mmdet.quantization.output_samples import Sample, Weighted, sample_inputs
from mixaq_mmdet.quantization.output_search import OutputSearch
from mixaq_mmdet.quantization.quantizers.base import quantizer_mode
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer
from mixaq_mmdet.registry import QUANT_METHODS


class OneLayer:
    """The inputs of a block that is one layer."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def replay(self, block):
        for x in self.tensors:
            block(x)


def quantized(layer, channels, bits=3):
    weight = UniformQuantizer(bits, axis=0, channels=layer.weight.shape[0], per_channel=True, name='weight')
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    inputs = BranchQuantizers(lambda b: UniformQuantizer(bits, axis=axis, channels=channels, branch=b, name=b), False)
    make = to_quant_conv2d if isinstance(layer, nn.Conv2d) else to_quant_linear
    return make(layer, weight, inputs)


@pytest.mark.parametrize('options', [{}, {'padding': 1, 'stride': 2}, {'padding': (0, 2), 'dilation': (1, 2)}])
def test_patches_of_a_convolution_give_its_outputs(options):
    torch.manual_seed(0)
    layer = quantized(nn.Conv2d(3, 5, 3, bias=False, **options), 3)
    x = torch.randn(2, 3, 11, 8)
    (weighted,) = sample_inputs(layer, OneLayer(x), 7)[layer]
    with torch.no_grad(), quantizer_mode(layer, 'float'):
        expected = weighted.sample.locate(layer(x))
    assert expected.shape == weighted.sample.shape == (7, 5)
    torch.testing.assert_close(weighted.sample.left @ layer.weight.detach().flatten(1).t(), expected)


def test_grouped_convolutions_are_left_out():
    layer = quantized(nn.Conv2d(4, 4, 3, groups=4), 4)
    assert sample_inputs(layer, OneLayer(torch.randn(1, 4, 5, 5)), 7) == {}


def linear_search():
    torch.manual_seed(0)
    layer, x = quantized(nn.Linear(6, 4), 6), torch.randn(64, 6)
    layer.weight_quant.fit(Samples.exact(layer.weight, 0, 'weight'), MinMaxRange())
    layer.input_quant.high.fit(Samples.exact(x, None, 'x'), MinMaxRange())
    sample = Sample('high', x, None, None, lambda out: out, x, torch.Size((64, 4)))
    return layer, OutputSearch(layer, [Weighted(sample, None)], lambda tensors: None)


def test_each_channel_of_a_weight_takes_its_own_best():
    layer, search = linear_search()
    quantizer = layer.weight_quant
    candidates = [(quantizer.scale * share, quantizer.zero_point.clone()) for share in (0.6, 0.8, 1.0, 1.2)]
    error, errors = search.error_of(quantizer), []
    for grid in candidates:
        quantizer.set_grid(*grid)
        errors.append(error())
    errors = torch.stack(errors)
    assert errors.shape == (4, 4)
    search.choose(quantizer, candidates)
    torch.testing.assert_close(error(), errors.min(0).values)
    assert len(errors.argmin(0).unique()) > 1


def test_the_error_is_that_of_the_layers_output():
    layer, search = linear_search()
    (term,) = search.terms
    with torch.no_grad():
        off = layer(term.left) - nn.functional.linear(term.left, layer.weight, layer.bias)
    expected = off.double().square().sum()
    torch.testing.assert_close(search.error_of(layer.input_quant.high)(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(search.error_of(layer.weight_quant)().sum(), expected, rtol=1e-5, atol=1e-6)


def test_padding_has_no_say_and_branches_are_kept_apart():
    seen = {}

    @QUANT_METHODS.register_module()
    class TestSampling(Method):
        def calibrate(self, block, inputs):
            noise = super().calibrate(block, inputs)
            seen[block] = sample_inputs(block, inputs, 6)
            return noise

        def calibration_steps(self, block, images):
            return 3 * images

    try:
        model = backbone({'method': 'TestSampling', 'low_a_bits': 4})
        Calibrator(model).run(images(2, (20, 28)))  # 5 x 7 tokens: windows of 4 x 4 are padded
    finally:
        del QUANT_METHODS.module_dict['TestSampling']
    block = model.stages[0].blocks[0]
    for module, found in seen[block].items():
        assert {weighted.sample.branch for weighted in found} == {'high', 'low'}
        for sample, importance in found:
            if isinstance(module, QuantMatmul):
                assert sample.left.shape[0] == 1, 'one window holds more than six tokens'
                assert importance is None or importance.shape[-2] == sample.left.shape[-2]
            else:
                assert 1 <= len(sample.left) <= 6
                assert sample.left.any(dim=1).all(), 'padding is all zeros'
    assert any(isinstance(module, QuantConv2d) for module in seen[model.patch_embed])
