"""The faster layers against the stock ones they replace."""

import copy

import pytest
import torch
from mmdet.models.layers import PatchMerging
from torch import nn

from mixaq_mmdet.models import fast_layers
from mixaq_mmdet.models.fast_layers import FastLinear, FastPatchMerging


def linear(bias: bool = True) -> FastLinear:
    torch.manual_seed(0)
    return FastLinear.convert(nn.Linear(12, 20, bias))


@pytest.mark.skipif(fast_layers.ONEDNN_LINEAR is None, reason='this torch was built without oneDNN')
@pytest.mark.parametrize('bias', [True, False])
def test_float32_inference_asks_onednn_and_agrees(bias, monkeypatch):
    layer, x = linear(bias), torch.randn(5, 7, 12)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x.transpose(0, 1)), expected.transpose(0, 1))
        monkeypatch.setattr(fast_layers, 'ONEDNN_LINEAR', lambda *_: 'asked')
        assert layer(x) == 'asked'


@pytest.mark.skipif(fast_layers.ONEDNN_LINEAR is None, reason='this torch was built without oneDNN')
def test_gelu_is_fused_only_where_nobody_watches():
    layer, activation, x = linear(), nn.GELU(), torch.randn(5, 7, 12)
    assert not layer.can_fuse(activation, x), 'gradients need the values in between'
    with torch.no_grad():
        assert layer.can_fuse(activation, x)
        torch.testing.assert_close(layer.with_gelu(x), activation(layer(x)))
        for other in (nn.GELU('tanh'), nn.ReLU()):
            assert not layer.can_fuse(other, x)
        for watched in (layer, activation):
            handle = watched.register_forward_hook(lambda *_: None)
            assert not layer.can_fuse(activation, x)
            handle.remove()
        assert layer.can_fuse(activation, x)


def test_everything_else_takes_the_ordinary_product(monkeypatch):
    def refuse(*_):
        raise AssertionError('asked oneDNN')

    monkeypatch.setattr(fast_layers, 'ONEDNN_LINEAR', refuse)
    layer, x = linear(), torch.randn(5, 12)
    assert layer(x).requires_grad
    with torch.no_grad():
        assert layer(x[:0]).shape == (0, 20)
        with torch.autocast('cpu', torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64
        layer.float()
        torch.jit.trace(layer, x, check_trace=False)
        assert torch.export.export(nn.Sequential(layer), (x,))
        monkeypatch.setattr(fast_layers, 'ONEDNN_LINEAR', None)
        assert layer(x).shape == (5, 20)


@pytest.mark.parametrize('norm_cfg', [dict(type='LN'), None], ids=['LN', 'no norm'])
@pytest.mark.parametrize('size', [(8, 6), (7, 6), (4, 5), (1, 1)], ids=str)
def test_merging_is_that_of_stock(size, norm_cfg):
    stock = PatchMerging(6, 12, norm_cfg=norm_cfg).double()
    ours = FastPatchMerging.convert(copy.deepcopy(stock))
    assert type(ours) is FastPatchMerging
    x = torch.randn(2, size[0] * size[1], 6, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    (expected, shape), (found, own_shape) = stock(inputs[0], size), ours(inputs[1], size)
    assert shape == own_shape
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(ours.reduction.weight.grad, stock.reduction.weight.grad)


def test_other_merging_goes_the_way_of_stock():
    stock = PatchMerging(6, 12, kernel_size=3, stride=2)
    x = torch.randn(2, 7 * 9, 6)
    expected, size = stock(x, (7, 9))
    found, found_size = FastPatchMerging.convert(stock)(x, (7, 9))
    assert found_size == size
    torch.testing.assert_close(found, expected)
