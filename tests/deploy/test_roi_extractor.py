"""KernelRoIExtractor in place of SingleRoIExtractor: the same values and gradients, and when it is stock itself."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from tiny_detector import tiny_mask_rcnn
from torch import Tensor

from mixaq_mmdet.deploy.kernels.portable import load_portable
from mixaq_mmdet.deploy.parts import roi_extractor
from mixaq_mmdet.deploy.parts.roi_extractor import KernelRoIExtractor

STRIDES = [4, 8, 16, 32]
KERNELS, REASON = load_portable()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f'no portable kernels here: {REASON}')


def extractor(kind: type[SingleRoIExtractor], strides: list[int] = STRIDES, **layer: object) -> SingleRoIExtractor:
    layer = {'type': 'RoIAlign', 'output_size': 7, 'sampling_ratio': 0, **layer}
    return kind(roi_layer=layer, out_channels=8, featmap_strides=strides)


def maps(levels: int = 4) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 8, 512 // s, 512 // s, generator=generator) for s in STRIDES[:levels])


def rois(count: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * 200
    sides = 300 * torch.rand(count, 2, generator=generator) ** 2
    return torch.cat([torch.arange(count)[:, None].float() % 2, corners, corners + sides], 1)


@needs_kernels
@pytest.mark.parametrize('factor', [None, 1.5])
@pytest.mark.parametrize('levels', [1, 4])
def test_same_values_as_stock(levels, factor):
    stock, ours = (
        extractor(kind, STRIDES[:levels])(maps(levels), rois(), factor)
        for kind in (SingleRoIExtractor, KernelRoIExtractor)
    )
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=2e-6)


@needs_kernels
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float(dtype):
    halves = tuple(x.to(dtype) for x in maps())
    pooled = extractor(KernelRoIExtractor)(halves, rois())
    stock = extractor(SingleRoIExtractor)(tuple(x.float() for x in halves), rois())
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, stock.to(dtype), rtol=0.01, atol=1e-3)


@needs_kernels
def test_channels_last_maps_are_pooled_as_what_they_are(monkeypatch):
    last = tuple(x.contiguous(memory_format=torch.channels_last) for x in maps())
    expected = extractor(SingleRoIExtractor)(maps(), rois())
    torch.testing.assert_close(extractor(KernelRoIExtractor)(last, rois()), expected, rtol=1e-5, atol=2e-6)
    monkeypatch.setattr(roi_extractor, 'load_portable', lambda: (None, 'as if there were no compiler'))
    assert torch.equal(extractor(KernelRoIExtractor)(last, rois()), expected)


@pytest.mark.parametrize('layer', [dict(pool_mode='max'), dict(type='RoIPool')], ids=['max', 'RoIPool'])
def test_other_layers_are_left_to_stock(layer):
    layer = {'type': 'RoIAlign', 'output_size': 7, **layer}
    stock, ours = (
        kind(roi_layer=layer, out_channels=8, featmap_strides=STRIDES)
        for kind in (SingleRoIExtractor, KernelRoIExtractor)
    )
    assert ours._pooling(4) is None
    if layer['type'] == 'RoIAlign':  # mmcv's RoIPool has no CPU form
        assert torch.equal(stock(maps(), rois()), ours(maps(), rois()))


def test_without_kernels_it_is_stock(monkeypatch):
    monkeypatch.setattr(roi_extractor, 'load_portable', lambda: (None, 'as if there were no compiler'))
    stock, ours = (extractor(kind)(maps(), rois()) for kind in (SingleRoIExtractor, KernelRoIExtractor))
    assert torch.equal(ours, stock)


def test_a_trace_holds_stocks_operator():
    ours, stock = extractor(KernelRoIExtractor), extractor(SingleRoIExtractor)
    traced = torch.jit.trace(lambda x, boxes: ours((x,), boxes), (maps(1)[0], rois()), check_trace=False)
    other = maps(1)[0].flip(2)
    assert torch.equal(traced(other, rois()), stock((other,), rois()))


def step_behind(kind: str) -> tuple[float, list[Tensor]]:
    """Loss of both heads of a Mask R-CNN whose extractors are of ``kind``, and its gradients to the maps."""
    config = ConfigDict(tiny_mask_rcnn(), _scope_='mmdet')
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        config.roi_head[name].type = kind
    torch.manual_seed(0)
    head = MODELS.build(config).train().roi_head
    assert type(head.bbox_roi_extractor).__name__ == type(head.mask_roi_extractor).__name__ == kind
    generator = torch.Generator().manual_seed(0)
    channels = head.bbox_roi_extractor.out_channels
    features = [torch.randn(2, channels, 512 // s, 512 // s, generator=generator).requires_grad_() for s in STRIDES]
    scores, deltas = head.bbox_head(head.bbox_roi_extractor(features, rois()))
    logits = head.mask_head(head.mask_roi_extractor(features, rois()))
    loss = scores.square().mean() + deltas.square().mean() + logits.square().mean()
    return loss.item(), list(torch.autograd.grad(loss, features))


def test_in_a_config_it_is_a_type():
    (stock, expected), (ours, gradients) = (step_behind(kind) for kind in ('SingleRoIExtractor', 'KernelRoIExtractor'))
    assert ours == pytest.approx(stock, rel=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-7)
