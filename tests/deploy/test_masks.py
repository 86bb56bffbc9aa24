"""Masks pasted by the portable kernels against mmdet's, pixel by pixel."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.deploy.kernels.portable import load_portable
from mixaq_mmdet.deploy.parts.masks import paste_masks, reference

KERNELS, REASON = load_portable()
pytestmark = pytest.mark.skipif(KERNELS is None, reason=f'no portable kernels here: {REASON}')
SIZE = (180, 240)
PIXELS_APART = 1e-5


def masks_of(count: int, side: int = 28, seed: int = 0) -> Tensor:
    """Smooth blobs with edges, as a mask head's: (N, side, side) in 0..1."""
    noise = torch.randn(count, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.sigmoid(4 * F.interpolate(noise, (side, side), mode='bicubic'))[:, 0]


def boxes_of(count: int, size: tuple[int, int] = SIZE, seed: int = 1) -> Tensor:
    """Of all sizes; some reach over the image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor(size[::-1])
    halves = 1 + 0.6 * min(size) * torch.rand(count, 2, generator=generator) ** 2
    return torch.cat([centres - halves, centres + halves], 1)


def share_apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == torch.bool
    return (ours != theirs).double().mean().item()


@pytest.mark.parametrize('side', [1, 14, 28])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5])
def test_pixels_are_mmdets(side, threshold):
    masks, boxes = masks_of(100, side), boxes_of(100)
    expected = reference(masks, boxes, SIZE, threshold)
    assert expected.any()
    assert not expected.all()
    assert share_apart(paste_masks(KERNELS, masks, boxes, SIZE, threshold), expected) <= PIXELS_APART


def test_an_image_of_usual_size():
    size = (800, 1216)
    masks, boxes = masks_of(24), boxes_of(24, size).clamp(min=0)
    assert share_apart(paste_masks(KERNELS, masks, boxes, size), reference(masks, boxes, size)) <= PIXELS_APART


EDGES = {
    'one pixel': (10.0, 20.0, 11.0, 21.0),
    'within a pixel': (10.3, 20.3, 10.6, 20.4),
    'no width': (10.0, 20.0, 10.0, 60.0),
    'no width, at the middle of a pixel': (10.5, 20.0, 10.5, 60.0),
    'no height': (10.0, 20.0, 90.0, 20.0),
    'a point': (10.5, 20.5, 10.5, 20.5),
    'over every side': (-100.0, -100.0, 500.0, 400.0),
    'the image': (0.0, 0.0, 240.0, 180.0),
    'the last pixel': (239.0, 179.0, 240.0, 180.0),
}


@pytest.mark.parametrize('name', EDGES)
def test_edges(name):
    masks = torch.cat([masks_of(3), torch.ones(1, 28, 28)])
    boxes = torch.tensor([EDGES[name]]).repeat(4, 1)
    assert torch.equal(paste_masks(KERNELS, masks, boxes, SIZE), reference(masks, boxes, SIZE))


@pytest.mark.parametrize('box', [(500.0, 20.0, 600.0, 60.0), (-90.0, -90.0, -50.0, -40.0)])
def test_a_box_outside_of_the_image_shows_nothing(box):
    """mmdet's function fails there."""
    assert not paste_masks(KERNELS, torch.ones(1, 28, 28), torch.tensor([box]), SIZE).any()


def test_no_masks():
    assert paste_masks(KERNELS, torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)


def test_masks_are_memory_of_their_own():
    """Writable, alive as long as a part of them is, and neither shared between calls nor with copies."""
    masks, boxes = torch.ones(2, 28, 28), torch.tensor([[0.0, 0.0, 50.0, 40.0], [10.0, 10.0, 20.0, 20.0]])
    first, second = (paste_masks(KERNELS, masks, boxes, SIZE) for _ in range(2))
    kept = first[1:]
    del first
    kept.logical_not_()
    assert torch.equal(kept[0], ~second[1])
    assert not second[:, 100:].any()
    assert torch.equal(pickle.loads(pickle.dumps(second)), second)


def test_threads_do_not_change_a_pixel():
    masks, boxes = masks_of(30), boxes_of(30)
    one, many = (paste_masks(KERNELS, masks, boxes, SIZE, threads=threads) for threads in (1, 3))
    assert torch.equal(one, many)


@pytest.mark.parametrize(
    ('masks', 'boxes', 'threshold', 'message'),
    [
        (masks_of(2).double(), boxes_of(2), 0.5, 'masks: '),
        (masks_of(2)[:, None], boxes_of(2), 0.5, 'masks: '),
        (masks_of(2), boxes_of(3), 0.5, 'boxes: '),
        (masks_of(2), boxes_of(2) * float('nan'), 0.5, 'finite'),
        (masks_of(2), boxes_of(2), -1.0, 'threshold'),
    ],
)
def test_what_does_not_fit_is_refused(masks, boxes, threshold, message):
    with pytest.raises(ValueError, match=message):
        paste_masks(KERNELS, masks, boxes, SIZE, threshold)
