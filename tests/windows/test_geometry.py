"""Windows against a slow reference that walks over pixels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixaq_mmdet.windows.geometry import (
    NUM_KINDS,
    PADDING,
    kind_regions,
    num_windows,
    padded_size,
    partition,
    region_ids,
    reverse,
    shift_mask,
    window_grid,
    window_kinds,
    window_rows,
)

sides = st.integers(1, 30)
windows = st.integers(2, 8)
quick = settings(max_examples=40, deadline=None)


@st.composite
def layouts(draw) -> tuple[int, int, int, int]:
    window = draw(windows)
    return draw(sides), draw(sides), window, draw(st.integers(0, window - 1))


def slow_rows(height: int, width: int, window: int, shift: int) -> list[list[int]]:
    padded_height, padded_width = padded_size(height, width, window)
    rows = []
    for top in range(0, padded_height, window):
        for left in range(0, padded_width, window):
            tokens = []
            for y in range(top, top + window):
                for x in range(left, left + window):
                    source_y, source_x = (y + shift) % padded_height, (x + shift) % padded_width
                    inside = source_y < height and source_x < width
                    tokens.append(source_y * width + source_x if inside else PADDING)
            rows.append(tokens)
    return rows


def stock_regions(height: int, width: int, window: int, shift: int) -> torch.Tensor:
    """The region image as mmdet's ShiftWindowMSA draws it, cut into windows."""
    padded_height, padded_width = padded_size(height, width, window)
    image = torch.zeros(padded_height, padded_width)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
        image[rows, columns] = number
    return partition(image[None], window)[0]


@quick
@given(layouts(), st.integers(1, 3), st.integers(1, 3))
def test_reverse_undoes_partition(layout, batch, channels):
    height, width, window, shift = layout
    x = torch.rand(batch, height, width, channels)
    cut = partition(x, window, shift)
    assert cut.shape == (batch, num_windows(height, width, window), window**2, channels)
    assert torch.equal(reverse(cut, height, width, window, shift), x)


@quick
@given(layouts())
def test_rows_are_those_of_a_walk_over_pixels(layout):
    assert window_rows(*layout).tolist() == slow_rows(*layout)


@quick
@given(layouts())
def test_every_token_is_in_exactly_one_window(layout):
    height, width, _, _ = layout
    rows = window_rows(*layout)
    assert torch.equal(rows[rows != PADDING].sort().values, torch.arange(height * width))


@quick
@given(layouts().filter(lambda layout: layout[3] > 0))
def test_masks_are_stock_masks(layout):
    height, width, window, shift = layout
    expected = shift_mask(stock_regions(*layout))
    assert torch.equal(shift_mask(region_ids(*layout)), expected)
    by_kind = shift_mask(kind_regions(window, shift))[window_kinds(height, width, window, shift)]
    assert torch.equal(by_kind, expected)


def test_without_shift_no_token_is_masked():
    assert not shift_mask(region_ids(10, 10, 4, 0)).any()
    assert not window_kinds(10, 10, 4, 0).any()


def test_kinds_need_different_masks():
    masks = shift_mask(kind_regions(4, 2)).flatten(1)
    assert len({tuple(mask.tolist()) for mask in masks}) == NUM_KINDS


@pytest.mark.parametrize(('size', 'padded'), [((4, 5), True), ((7, 7), False), ((14, 8), True)])
def test_grid_knows_its_padding(size, padded):
    grid = window_grid(*size, window=7, shift=3)
    assert grid.padded == padded
    assert grid.real.sum() == size[0] * size[1]
    assert torch.equal(grid.real, grid.rows != PADDING)


def test_a_map_smaller_than_a_window_is_one_window():
    assert num_windows(4, 5, 7) == 1
