"""Quantized convolutions of necks and heads are integer kernels in ONNX Runtime, and exact."""

import numpy as np
import pytest
import torch
from torch import nn

from mixaq_mmdet.deploy.export.graph import save, to_onnx
from mixaq_mmdet.deploy.export.lowering import lower
from mixaq_mmdet.deploy.export.saturation import of_file
from mixaq_mmdet.deploy.export.targets import find_target
from mixaq_mmdet.quantization.layers import BranchQuantizers, to_quant_conv2d, to_quant_deconvolution
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

CASES = {
    '3x3': ({}, {}),
    '3x3 of four bits': ({}, {'bits': 4}),
    'own zero points, stride 2': ({'stride': 2}, {'zero_points': True}),
    'groups, dilated': ({'groups': 2, 'dilation': 2, 'padding': 2}, {}),
}


def convolution(options, bits=8, zero_points=False):
    """A quantized 3x3 convolution with full-range codes; its input's grid has a zero point, which padding must be."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(8, 6, 3, **{'padding': 1, **options})
    zero = torch.full((6,), 2.0 ** (bits - 1))
    if zero_points:
        zero += torch.tensor([-60.0, 0, 60, 5, 9, -3])
    codes = torch.randint(0, 2**bits, conv.weight.shape, generator=generator)
    conv.weight.data = (codes - zero.view(-1, 1, 1, 1)) * 0.25
    weight = UniformQuantizer(bits, axis=0, channels=6, per_channel=True)
    weight.set_grid(torch.full((6,), 0.25), zero)
    inputs = BranchQuantizers(lambda branch: UniformQuantizer(bits), two=False)
    inputs.high.set_grid(torch.tensor(0.5), torch.tensor(5.0))
    return nn.Sequential(to_quant_conv2d(conv, weight, inputs)).eval()


def deconvolution(bits=8, zero_points=False):
    """The same for a deconvolution of 2x2, stride 2; outputs of each place have a grid of their own."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.ConvTranspose2d(8, 3, 2, 2)
    rows = 3 * 4
    zero = torch.full((rows,), 2.0 ** (bits - 1))
    if zero_points:
        zero += torch.randint(-60, 60, (rows,), generator=generator)
    weight = UniformQuantizer(bits, axis=0, channels=rows, per_channel=True)
    weight.set_grid(0.25 * (1 + torch.rand(rows, generator=generator)), zero)
    inputs = BranchQuantizers(lambda branch: UniformQuantizer(bits), two=False)
    inputs.high.set_grid(torch.tensor(0.5), torch.tensor(5.0))
    quantized = to_quant_deconvolution(layer, weight, inputs)
    codes = torch.randint(0, 2**bits, (rows, 8), generator=generator)
    quantized.weight.data = quantized.from_source((codes - zero[:, None]) * weight.scale[:, None]).clone()
    return nn.Sequential(quantized).eval()


@pytest.mark.parametrize(('options', 'grid'), list(CASES.values()), ids=list(CASES))
@torch.no_grad()
def test_convolutions_are_integer_kernels_and_exact(options, grid, tmp_path):
    model = convolution(options, **grid)
    x = torch.randn(1, 8, 9, 12, generator=torch.Generator().manual_seed(1)) * 30
    expected = model(x).numpy()
    target, path = find_target('onnxruntime'), tmp_path / 'x.onnx'
    assert lower(model, target.dialect).float_layers == []
    proto = to_onnx(model, {'image': x}, ['out'])
    save(proto, path)
    np.testing.assert_allclose(target.session(path)({'image': x.numpy()})[0], expected, rtol=1e-5, atol=1e-3)
    census = target.census(path)
    assert census.in_float == {}
    assert set(census.int8) == {'ConvInteger'}
    assert of_file(proto).beyond == 0


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino'])
@pytest.mark.parametrize('grid', [{}, {'bits': 4}, {'zero_points': True}], ids=str)
@torch.no_grad()
def test_a_deconvolution_is_a_product_of_pixels(name, grid, tmp_path):
    pytest.importorskip(name)
    model = deconvolution(**grid)
    x = torch.randn(1, 8, 5, 7, generator=torch.Generator().manual_seed(1)) * 30
    expected = model(x).numpy()
    target, path = find_target(name), tmp_path / 'x.onnx'
    assert lower(model, target.dialect).float_layers == []
    save(to_onnx(model, {'image': x}, ['out']), path)
    found = target.session(path)({'image': x.numpy()})[0]
    if name == 'openvino':  # may compute in bfloat16 between its quantization nodes
        assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    else:
        half = 0.5 * 0.5 * float(model[0].product.scale.max())  # its bias is a whole number of steps
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=half)
        census = target.census(path)
        assert census.in_float == {}
        assert sum(census.int8.values()) == 1


@torch.no_grad()
def test_groups_with_own_zero_points_stay_float_and_are_named(tmp_path):
    model = convolution({'groups': 2}, zero_points=True)
    lowered = lower(model, find_target('onnxruntime').dialect)
    assert lowered.lines('onnxruntime') == ['onnxruntime: 1 quantized layers stay float: 0']
