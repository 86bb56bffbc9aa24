"""RoIAlign of the portable kernels against mmcv's: floats, gradients, codes, edges, refusals."""

from __future__ import annotations

import pytest
import torch
from mmcv.ops import roi_align as mmcv_roi_align
from torch import Tensor

from mixaq_mmdet.deploy.kernels.portable import load_portable
from mixaq_mmdet.deploy.layouts import Grid
from mixaq_mmdet.deploy.parts.roi_align import Pooling, reference, roi_align, roi_align_with_gradient

KERNELS, REASON = load_portable()
pytestmark = pytest.mark.skipif(KERNELS is None, reason=f'no portable kernels here: {REASON}')
LAYOUTS = {'first': torch.contiguous_format, 'last': torch.channels_last}
HEIGHT, WIDTH, STRIDES = 96, 128, (4, 8, 16)
BINS = (3, 5)


def pyramid(channels: int = 64, batch: int = 2, layout: str = 'first') -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, channels, HEIGHT // s, WIDTH // s, generator=generator) for s in STRIDES]
    return [x.contiguous(memory_format=LAYOUTS[layout]) for x in maps]


def random_rois(count: int = 40, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Boxes of all sizes that also reach over the image, and levels that have nothing to do with them."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    halves = torch.rand(count, 2, generator=generator) ** 2 * 60
    images = torch.randint(batch, (count, 1), generator=generator).float()
    levels = torch.randint(len(STRIDES), (count,), generator=generator)
    return torch.cat([images, centres - halves, centres + halves], 1), levels


EDGES = {
    'one pixel': (10.0, 20.0, 11.0, 21.0),
    'empty': (10.0, 20.0, 10.0, 20.0),
    'empty in one direction': (10.0, 20.0, 10.0, 60.0),
    'outside': (500.0, 500.0, 600.0, 540.0),
    'left of all': (-90.0, -90.0, -50.0, -40.0),
    'the whole image': (0.0, 0.0, float(WIDTH), float(HEIGHT)),
    'far over every side': (-300.0, -300.0, 500.0, 400.0),
    'last column': (WIDTH - 1.0, 0.0, float(WIDTH), float(HEIGHT)),
}


def edge_rois() -> tuple[Tensor, Tensor]:
    boxes = torch.tensor([[0.0, *box] for box in EDGES.values()]).repeat(len(STRIDES), 1)
    return boxes, torch.arange(len(STRIDES)).repeat_interleave(len(EDGES))


def pooling(sampling_ratio: int = 0, aligned: bool = True) -> Pooling:
    return Pooling(BINS, tuple(1 / s for s in STRIDES), sampling_ratio, aligned)


@pytest.mark.parametrize('rois', [random_rois(), edge_rois()], ids=['random', 'edges'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_values_are_mmcvs(sampling_ratio, aligned, layout, rois):
    how = pooling(sampling_ratio, aligned)
    ours = roi_align(KERNELS, pyramid(layout=layout), *rois, how)
    torch.testing.assert_close(ours, reference(pyramid(), *rois, how), rtol=1e-5, atol=2e-6)
    assert ours.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize('channels', [1, 3, 100, 256])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_any_number_of_channels(channels, layout):
    maps, rois = pyramid(channels, layout=layout), random_rois()
    expected = reference(maps, *rois, pooling())
    for channels_last in (False, True):
        ours = roi_align(KERNELS, maps, *rois, pooling(), channels_last=channels_last)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('rois', [random_rois(), edge_rois()], ids=['random', 'edges'])
@pytest.mark.parametrize('pooled_layout', LAYOUTS)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('channels', [64, 70])
def test_gradients_are_mmcvs(channels, layout, pooled_layout, rois):
    def gradients(pool, maps):
        leaves = [x.requires_grad_() for x in maps]
        pooled = pool(leaves)
        grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2))
        return torch.autograd.grad(pooled, leaves, grad.contiguous(memory_format=LAYOUTS[pooled_layout]))

    ours = gradients(
        lambda maps: roi_align_with_gradient(KERNELS, maps, *rois, pooling()), pyramid(channels, layout=layout)
    )
    theirs = gradients(lambda maps: reference(maps, *rois, pooling()), pyramid(channels))
    for mine, stock in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-4, atol=1e-5)
        assert mine.is_contiguous(memory_format=LAYOUTS[layout])


def test_gradient_by_finite_differences():
    """Pooling is linear: a difference over a step of 1 is the derivative, up to rounding."""
    maps, rois = [x.requires_grad_() for x in pyramid(2)], random_rois(12)
    weights = torch.randn(12, 2, *BINS, generator=torch.Generator().manual_seed(3))

    def loss(values):
        return (roi_align_with_gradient(KERNELS, values, *rois, pooling()) * weights).sum()

    gradients = torch.autograd.grad(loss(maps), maps)
    generator = torch.Generator().manual_seed(4)
    for level, gradient in enumerate(gradients):
        for place in torch.randint(gradient.numel(), (20,), generator=generator).tolist():
            ends = []
            for step in (-0.5, 0.5):
                moved = [x.detach().clone() for x in maps]
                moved[level].view(-1)[place] += step
                ends.append(loss(moved).item())
            assert ends[1] - ends[0] == pytest.approx(gradient.view(-1)[place].item(), abs=2e-4)


def test_levels_without_rois_get_zero_gradients():
    maps, rois = [x.requires_grad_() for x in pyramid()], random_rois(0)
    pooled = roi_align_with_gradient(KERNELS, maps, *rois, pooling())
    assert pooled.shape == (0, 64, *BINS)
    for gradient in torch.autograd.grad(pooled.sum(), maps):
        assert not gradient.any()


def test_threads_do_not_change_a_bit():
    maps, rois = pyramid(256), random_rois(100)
    one, many = (roi_align(KERNELS, maps, *rois, pooling(), threads=threads) for threads in (1, 3))
    assert torch.equal(one, many)


@pytest.mark.parametrize('rois', [random_rois(), edge_rois()], ids=['random', 'edges'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('in_bits', 'out_bits'), [(8, 8), (8, None), (None, 4), (4, 8)])
def test_codes(in_bits, out_bits, layout, rois):
    in_grid = None if in_bits is None else Grid(6 / (2**in_bits - 1), 2 ** (in_bits - 1) - 1, in_bits)
    out_grid = None if out_bits is None else Grid(4.1 / (2**out_bits - 1), 2 ** (out_bits - 1) + 1, out_bits)
    maps = pyramid()
    if in_grid is not None:
        maps = [(x / in_grid.scale + in_grid.zero_point).round().clamp(0, 2**in_bits - 1).byte() for x in maps]
    maps = [x.contiguous(memory_format=LAYOUTS[layout]) for x in maps]
    ours = roi_align(KERNELS, maps, *rois, pooling(), in_grid, out_grid)
    expected = reference(maps, *rois, pooling(), in_grid, out_grid)
    if out_grid is None:
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        return
    apart = (ours.int() - expected.int()).abs()
    assert apart.max() <= 1, 'only a value halfway between two codes may fall on either'
    assert apart.float().mean() < 1e-3


BAD_ROIS = {
    'negative size': (0.0, 20.0, 10.0, 10.0, 30.0),
    'not finite': (0.0, float('nan'), 10.0, 10.0, 30.0),
    'too large': (0.0, 0.0, 0.0, 1e9, 30.0),
    'an image': (2.0, 0.0, 0.0, 10.0, 30.0),
}


@pytest.mark.parametrize('case', BAD_ROIS)
def test_a_roi_that_cannot_be_pooled_is_refused(case):
    with pytest.raises(ValueError, match=case):
        roi_align(KERNELS, pyramid(), torch.tensor([BAD_ROIS[case]]), torch.zeros(1, dtype=torch.int64), pooling())


def test_a_level_that_is_not_there_is_refused():
    rois, _ = random_rois(1)
    with pytest.raises(ValueError, match='level'):
        roi_align(KERNELS, pyramid(), rois, torch.tensor([3]), pooling())


@pytest.mark.parametrize(
    ('maps', 'rois', 'levels', 'message'),
    [
        (pyramid()[:2], torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64), '2 maps but 3 scales'),
        ([x.double() for x in pyramid()], torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64), 'map 0'),
        ([x[0] for x in pyramid()], torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64), 'map 0'),
        (pyramid(), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), 'rois: '),
        (pyramid(), torch.zeros(1, 5), torch.zeros(2, dtype=torch.int64), 'level_of: '),
    ],
)
def test_tensors_that_do_not_fit_are_refused(maps, rois, levels, message):
    with pytest.raises(ValueError, match=message):
        roi_align(KERNELS, maps, rois, levels, pooling())


def test_rows_with_gaps_are_read_as_what_they_are():
    maps = [x[..., ::2] for x in pyramid()]
    rois = random_rois()
    torch.testing.assert_close(
        roi_align(KERNELS, maps, *rois, pooling()), reference(maps, *rois, pooling()), rtol=1e-5, atol=2e-6
    )


def test_what_mmcv_does_with_channels_last_maps():
    """Why stock's extractor gets its maps channels first from ours."""
    maps, (rois, _) = pyramid(layout='last'), random_rois()
    apart = mmcv_roi_align(maps[0], rois, 7, 0.25) - mmcv_roi_align(maps[0].contiguous(), rois, 7, 0.25)
    assert apart.abs().max() > 0.1
