"""Drawn backbones, layers and images: an engine gives the exact results, or says by name what it does not run."""

from __future__ import annotations

import pytest
import tiny_backbone
import torch
from fuzzing import fuzzed
from hypothesis import strategies as st
from integer_twin import SIZES, integer, relative_error, simulated

from mixaq_mmdet.deploy import kernels
from mixaq_mmdet.deploy.backends import OnednnBackend
from mixaq_mmdet.deploy.exact_layer import ExactLayer
from mixaq_mmdet.deploy.kernels import panels
from mixaq_mmdet.deploy.layouts import Geometry, Grid, Layer, LinearWeights

KERNELS, REASON = kernels.load()
ONEDNN, NO_ONEDNN = OnednnBackend.load()
DRAWN = dict(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    window=st.integers(2, 12),
    heads=st.sampled_from([1, 2, 3]),
    head_channels=st.sampled_from([8, 12, 16, 20, 32]),
    batch=st.integers(1, 2),
    ratios=st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.3), (0.01, 0.98)]),
)
TOLERANCE = 2e-2  # of whole maps; a code on a border of two weighs most in the smallest of them


def unsupported_by_kernels(window: int, channels: int, head_channels: int) -> str | None:
    """What they say of a backbone that they do not run."""
    if channels % 16:
        return 'no multiple of 16'
    if head_channels not in panels.HEAD_CHANNELS:
        return 'heads of'
    return 'windows of' if window**2 > panels.MAX_TOKENS else None


def check(engine: str, size, window, heads, head_channels, batch, ratios) -> None:
    options = dict(embed_dims=heads * head_channels, num_heads=(heads, 2 * heads), window_size=window)
    low, prune = ratios
    model = simulated('MinMax', low_ratios=low, prune_ratios=prune, **options)
    sizes = {**SIZES, **options}
    refusal = unsupported_by_kernels(window, heads * head_channels, head_channels) if engine == 'kernels' else None
    if refusal is not None:
        with pytest.raises(ValueError, match=rf'engine="kernels" cannot run here: .*{refusal}'):
            integer(model, engine, **sizes)
        return
    twin = integer(model, engine, **sizes)
    images = torch.cat(tiny_backbone.images(batch, size))
    with torch.no_grad():
        found, again, expected = twin(images), twin(images.clone()), model(images)
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert all(torch.isfinite(x).all() for x in found)
    if 1.0 in ratios or not any(ratios):  # elsewhere rounding may part windows of nearly equal importance
        assert relative_error(expected, found) < TOLERANCE


@fuzzed(few=4, many=60, **DRAWN)
def test_integers_in_torch(**drawn):
    """The exact engine runs every geometry."""
    check('torch', **drawn)


@fuzzed(few=4, many=60, **DRAWN)
@pytest.mark.skipif(ONEDNN is None, reason=f'no oneDNN int8 operators here: {NO_ONEDNN}')
def test_onednn(**drawn):
    """torch's int8 operators run every geometry."""
    check('onednn', **drawn)


@fuzzed(few=4, many=60, **DRAWN)
@pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')
def test_the_kernels(**drawn):
    """The kernels run a geometry or refuse it before anything is computed."""
    check('kernels', **drawn)


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Of rows and columns."""
    return st.tuples(st.integers(least, most), st.integers(least, most))


@fuzzed(
    **dict(few=30, many=400, seed=st.integers(0, 2**31), size=pairs(1, 60), kernel=pairs(1, 4), stride=pairs(1, 3)),
    **dict(padding=pairs(0, 3), dilation=pairs(1, 3), channels=st.integers(1, 40), outputs=st.integers(1, 70)),
    **dict(batch=st.integers(0, 3), bits=st.integers(2, 8), largest=st.sampled_from([1, 8, 127]), relu=st.booleans()),
)
@pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')
def test_layers_by_the_kernels(
    seed, size, kernel, stride, padding, dilation, channels, outputs, batch, bits, largest, relu
):
    """Convolutions of any walk over maps of any size."""
    generator = torch.Generator().manual_seed(seed)
    inputs = channels * kernel[0] * kernel[1]
    codes = torch.randint(-largest, largest + 1, (outputs, inputs), generator=generator).to(torch.int8)
    zero_point = torch.randint(-3, 4, (outputs,), generator=generator).int()
    weights = LinearWeights(codes, torch.ones(outputs), zero_point, torch.zeros(outputs))
    grid = Grid(1.0, 2**bits // 3, bits)
    layer = Layer(weights, grid, Geometry(kernel, stride, padding, dilation, 1), relu)
    refusal = kernels.layer_unsupported(layer)
    assert (refusal is None) == (inputs % 4 == 0), refusal
    if refusal is not None:
        return
    x = torch.randint(0, 2**bits, (batch, channels, *size), generator=generator).to(torch.uint8)
    runner = kernels.KernelLayer(KERNELS, layer)
    reach = [n + 2 * p - d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)]
    if min(reach) < 1:
        with pytest.raises(ValueError, match='the kernel is larger than the map'):
            runner(x)
    else:
        assert torch.equal(runner(x), ExactLayer(layer)(x))
