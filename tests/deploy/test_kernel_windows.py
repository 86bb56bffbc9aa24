"""Ranking and choosing windows in the kernels against the torch code that they stand in for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixaq_mmdet.deploy import kernels as package
from mixaq_mmdet.windows.assignment import assign, rank_windows, tier_counts
from mixaq_mmdet.windows.geometry import partition, window_grid
from mixaq_mmdet.windows.importance import L2, content_map, pool_content

KERNELS, REASON = package.load()
pytestmark = pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')
sizes = st.tuples(st.integers(1, 30), st.integers(1, 30))
shares = st.sampled_from([(0.0, 0.5), (0.4, 0.0), (0.3, 0.3), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0)])


@settings(max_examples=40, deadline=None)
@given(size=sizes, window=st.sampled_from([2, 4, 7, 8]), shifted=st.booleans(), seed=st.integers(0, 99))
def test_ranks_as_torch_does(size: tuple[int, int], window: int, shifted: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, *size, 32, generator=generator)
    content = torch.ones(2, *size)
    content[1, size[0] // 2 :] = 0
    shift = window // 2 * shifted
    expected = L2()(partition(L2().token_map(x), window, shift), window_grid(*size, window, shift).real)
    for reverse in (False, True):
        scores, blank, order = package.rank(KERNELS, x, content, window, reverse, threads=2)[shift]
        torch.testing.assert_close(scores, -expected if reverse else expected)
        assert torch.equal(blank, partition(content, window, shift).amax(-1) == 0)
        assert torch.equal(order, rank_windows(scores, blank))


def test_the_lower_number_comes_first_among_equals() -> None:
    content = torch.ones(1, 12, 20)
    _, _, order = package.rank(KERNELS, torch.ones(1, 12, 20, 16), content, 4)[0]
    assert order.tolist() == [list(range(15))]


def test_windows_without_a_number_come_first() -> None:
    x, content = torch.rand(1, 12, 20, 16), torch.ones(1, 12, 20)
    x[0, 5, 9, 3] = float('nan')
    scores, blank, order = package.rank(KERNELS, x, content, 4)[0]
    assert order[0, 0] == 7
    assert torch.equal(order, rank_windows(scores, blank))


@settings(max_examples=60, deadline=None)
@given(
    size=sizes,
    window=st.sampled_from([2, 4, 7]),
    shifted=st.booleans(),
    ratios=shares,
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_assigns_as_torch_does(
    size: tuple[int, int], window: int, shifted: bool, ratios: tuple[float, float], batch: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shift = window // 2 * shifted
    grid = window_grid(*size, window, shift)
    counts = tier_counts(len(grid.rows), *ratios)
    order = torch.stack([torch.randperm(len(grid.rows), generator=generator) for _ in range(batch)])
    branches = order.split(tuple(counts), dim=1)
    expected = assign(torch.cat([branch.sort(1).values for branch in branches], 1), counts, grid, batch)
    found = package.assign(KERNELS, order, counts, size, window, shift)
    assert found.counts == expected.counts
    assert len(found.runs) == len(expected.runs)
    for ours, theirs in zip(found.runs, expected.runs, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert (ours.slots is None) == (theirs.slots is None)
        assert ours.slots is None or torch.equal(ours.slots, theirs.slots)
        assert ours[2:5] == theirs[2:5]
        assert [s for s in ours.segments if s.start < s.stop] == list(theirs.segments)


@pytest.mark.parametrize('x', [torch.zeros(1, 4, 4, 24), torch.zeros(1, 4, 4, 32, dtype=torch.float64)])
def test_streams_the_kernel_cannot_read_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match='multiple of 16 channels'):
        package.rank(KERNELS, x, torch.ones(1, 4, 4), 4)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    patch=st.sampled_from([1, 2, 4, 5]),
    channels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_looks_as_torch_does(size: tuple[int, int], patch: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, channels, *size, generator=generator)
    images *= torch.rand(2, 1, *size, generator=generator) < 0.05  # -0.0 among them, which is no content
    content, finite = package.look(KERNELS, images, patch)
    assert torch.equal(content > 0, pool_content(content_map(images), patch, patch) > 0)
    assert finite


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('column', [3, 17])  # among sixteen at once, and behind them
def test_looks_for_numbers_that_are_not_finite(value: float, column: int) -> None:
    images = torch.zeros(1, 3, 8, 18)
    images[0, 2, 5, column] = value
    content, finite = package.look(KERNELS, images, 4)
    assert not finite
    assert content.nonzero().tolist() == [[0, 1, column // 4]]
