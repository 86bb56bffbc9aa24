"""Drawn shapes through every entry into C++: the results of plain torch, mmcv or mmdet, or an error by name.

Few examples in the usual suite, hundreds in a nightly one; ``tests/hardening/test_sanitizers.py`` runs both in a
library that is built with AddressSanitizer and UBSan.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuzzing import fuzzed
from hypothesis import assume
from hypothesis import strategies as st
from mmcv.ops import batched_nms as mmcv_batched_nms
from mmdet.models.layers import multiclass_nms as mmdet_multiclass_nms

from mixaq_mmdet.deploy.codes import codes_in_torch, to_codes
from mixaq_mmdet.deploy.kernels.portable import load_portable
from mixaq_mmdet.deploy.layouts import Grid
from mixaq_mmdet.deploy.parts import masks
from mixaq_mmdet.deploy.parts.nms import batched_nms, multiclass_nms
from mixaq_mmdet.deploy.parts.roi_align import Pooling, reference, roi_align, roi_align_with_gradient

KERNELS, REASON = load_portable()
pytestmark = pytest.mark.skipif(KERNELS is None, reason=f'no portable kernels here: {REASON}')
SEEDS = st.integers(0, 2**31)
SIDES = st.integers(1, 300)
CHANNELS = st.integers(1, 70)


def boxes_of(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 4), some without extent, some over every side."""
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    halves = torch.rand(count, 2, generator=generator) ** 3 * max(height, width)
    return torch.cat([centres - halves.round(), centres + halves.round()], 1)


@fuzzed(
    **dict(few=10, many=120, seed=SEEDS, sides=st.tuples(SIDES, SIDES), channels=CHANNELS, batch=st.integers(0, 3)),
    **dict(count=st.integers(0, 9), bins=st.tuples(st.integers(1, 8), st.integers(1, 8)), sampling=st.integers(0, 3)),
    **dict(aligned=st.booleans(), last=st.booleans(), threads=st.integers(1, 3), coded=st.booleans()),
)
def test_roi_align(seed, sides, channels, batch, count, bins, sampling, aligned, last, threads, coded):
    """Values of mmcv's operator on maps of any size, floats or codes; gradients of all cells."""
    assume(batch or not count)
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if last else torch.contiguous_format
    sizes = [sides, (max(sides[0] // 2, 1), max(sides[1] // 2, 1))]
    maps = [torch.randn(batch, channels, *size, generator=generator) for size in sizes]
    images = torch.randint(max(batch, 1), (count, 1), generator=generator).float()
    rois = torch.cat([images, boxes_of(count, *sides, generator)], 1)
    levels = torch.randint(2, (count,), generator=generator)
    pooling = Pooling(bins, (1.0, 0.5), sampling, aligned)
    grid = Grid(0.05, 11, 8) if coded else None
    if grid is not None:
        maps = [codes_in_torch(x, grid) for x in maps]
    kept = [x.contiguous(memory_format=layout) for x in maps]
    ours = roi_align(KERNELS, kept, rois, levels, pooling, grid, threads=threads)
    expected = reference(maps, rois, levels, pooling, grid)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    if not coded and batch:
        leaves = [x.clone().requires_grad_() for x in kept]
        roi_align_with_gradient(KERNELS, leaves, rois, levels, pooling).sum().backward()
        own = [x.clone().requires_grad_() for x in maps]
        if count:
            reference(own, rois, levels, pooling).sum().backward()
        for mine, theirs in zip(leaves, own, strict=True):
            wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
            torch.testing.assert_close(mine.grad, wanted, rtol=1e-3, atol=1e-3)


NOT_NUMBERS = st.sampled_from([float('nan'), float('inf'), -float('inf'), 1e30, -1e30, 3e38])


@fuzzed(
    few=25,
    many=300,
    box=st.lists(st.one_of(NOT_NUMBERS, st.floats(-400, 400, width=32)), min_size=5, max_size=5),
    level=st.integers(-2, 3),
    bins=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    aligned=st.booleans(),
)
def test_rois_that_are_none(box, level, bins, aligned):
    """A RoI that is not finite, of no image or of no level is refused; others have finite values."""
    maps = [torch.ones(2, 3, 9, 7), torch.ones(2, 3, 4, 3)]
    pooling = Pooling(bins, (1.0, 0.5), 0, aligned)
    call = (KERNELS, maps, torch.tensor([box]), torch.tensor([level]), pooling)
    if not (0 <= box[0] < 2 and 0 <= level < 2 and np.isfinite(box).all()):
        with pytest.raises(ValueError, match=r'RoI|bins'):
            roi_align(*call)
        return
    try:
        pooled = roi_align(*call)
    except ValueError:  # too large, or of a negative size
        return
    assert pooled.shape == (1, 3, *bins)
    assert torch.isfinite(pooled).all()


@fuzzed(
    few=25,
    many=300,
    seed=SEEDS,
    count=st.integers(0, 300),
    classes=st.integers(1, 12),
    limit=st.integers(-1, 40),
    threshold=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    split=st.sampled_from([1, 50, 10000]),
)
def test_nms(seed, count, classes, limit, threshold, split):
    """What mmcv keeps of boxes of any number, and what mmdet keeps of those of every class."""
    generator = torch.Generator().manual_seed(seed)
    boxes = boxes_of(count, 90, 120, generator).clamp(min=0)
    scores = torch.randperm(count, generator=generator) / max(count, 1)  # equal ones have no order in mmcv
    labels = torch.randint(classes, (count,), generator=generator)
    settings_of = {'type': 'nms', 'iou_threshold': threshold, 'split_thr': split}
    dets, keep = batched_nms(boxes, scores, labels, settings_of, limit=limit)
    nothing = (torch.zeros(0, 5), torch.zeros(0).long())  # where mmcv's function fails
    theirs, expected = mmcv_batched_nms(boxes, scores, labels, dict(settings_of)) if count else nothing
    wanted = len(expected) if limit < 0 else limit
    assert torch.equal(keep, expected[:wanted])
    assert torch.equal(dets, theirs[:wanted])
    many = torch.rand(count, classes + 1, generator=generator)
    found = multiclass_nms(boxes, many, 0.4, settings_of, limit, return_inds=True)
    stock = mmdet_multiclass_nms(boxes, many, 0.4, dict(settings_of), limit, return_inds=True)
    assert [x.shape for x in found] == [x.shape for x in stock]
    assert found[2].sort()[0].equal(stock[2].sort()[0])


@fuzzed(
    few=20,
    many=200,
    seed=SEEDS,
    size=st.tuples(SIDES, SIDES),
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(0, 6),
    threads=st.integers(1, 3),
)
def test_pasted_masks(seed, size, side, count, threads):
    """mmdet's pixels in images of any size, of boxes that lie anywhere."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, *side, generator=generator)
    boxes = boxes_of(count, *size, generator)
    ours = masks.paste_masks(KERNELS, drawn, boxes, size, threads=threads)
    expected = masks.reference(drawn, boxes, size)
    assert ours.shape == expected.shape
    assert (ours != expected).sum() <= 2 + 1e-3 * expected.numel()  # samples that lie on the threshold


@fuzzed(
    few=25,
    many=300,
    seed=SEEDS,
    shape=st.one_of(
        st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(0, 60), st.integers(0, 60)),
        st.tuples(st.integers(0, 300), st.integers(0, 300)),
    ),
    bits=st.integers(2, 8),
    zero=st.integers(-9, 260),
    offset=st.booleans(),
)
def test_codes(seed, shape, bits, zero, offset):
    """Codes of tensors of any shape, without elements too; values too large for an integer are clipped."""
    generator = torch.Generator().manual_seed(seed)
    x = 40 * torch.randn(shape, generator=generator)
    if x.numel():
        x.view(-1)[0] = torch.tensor([float('inf'), -float('inf'), 3e38, 0.0])[seed % 4]
    channels = shape[1] if len(shape) == 4 else shape[-1]
    before = torch.randn(channels, generator=generator) if offset else None
    grid = Grid(0.37, zero, bits, before=before)
    assert torch.equal(to_codes(x, grid), codes_in_torch(x, grid))
