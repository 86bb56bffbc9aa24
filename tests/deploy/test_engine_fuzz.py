"""Drawn backbones and images: an engine gives the simulated model's maps, or says by name what it does not run."""

from __future__ import annotations

import pytest
import tiny_backbone
import torch
from fuzzing import fuzzed
from hypothesis import strategies as st
from integer_twin import SIZES, integer, relative_error, simulated

from mixaq_mmdet.deploy import kernels
from mixaq_mmdet.deploy.backends import OnednnBackend
from mixaq_mmdet.deploy.kernels import panels

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
