"""Looking at images, ranking and choosing windows with the kernels: the answers of ``mixaq_mmdet.windows``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from mixaq_mmdet.windows.assignment import Assignment, Run, Segment, TierCounts
from mixaq_mmdet.windows.geometry import NUM_KINDS, num_windows

from ..tensor_checks import checked
from .build import Kernels
from .structures import WindowGrid

VECTOR = 16  # channels that the kernel adds at once


def look(kernels: Kernels, images: Tensor, patch: int) -> tuple[Tensor, bool]:
    """Where patches have content, and whether every number is finite, in one pass.

    Args:
        kernels: from ``load``.
        images: (B, channels, H, W) float32.
        patch: side and stride of the patches.

    Returns:
        (B, ceil(H / patch), ceil(W / patch)) float32: 1, or 0 where a patch holds nothing but zeros.
    """
    images = checked(images, 'images', ('batch', 'channels', 'height', 'width'))
    height, width = images.shape[2:]
    content = torch.empty(len(images), -(-height // patch), -(-width // patch))
    finite = kernels.call('look', images.data_ptr(), *images.shape, patch, content.data_ptr())
    return content, bool(finite)


def rank(
    kernels: Kernels, x: Tensor, content: Tensor, window: int, reverse: bool = False, threads: int | None = None
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Rank the windows of both grids as ``L2`` and ``rank_windows`` do.

    Args:
        kernels: from ``load``.
        x: (B, H, W, C) float32, the stream that enters a stage.
        content: (B, H, W), 0 where a token sees only batch padding.
        window: side of a window in tokens.
        reverse: the smallest first.
        threads: threads; torch's number if not given.

    Returns:
        By shift, 0 and half a window: scores, blank and order, (B, windows) each: float32, bool, int64.
    """
    x = checked(x, 'stream', ('batch', 'height', 'width', f'a multiple of {VECTOR} channels'))
    batch, height, width, channels = x.shape
    if channels % VECTOR:
        raise ValueError(f'stream: {channels} channels; give a multiple of {VECTOR} channels')
    content = checked(content.float(), 'content', (batch, height, width))
    shape = 2, batch, num_windows(height, width, window)
    means, scores = torch.empty(content.shape), torch.empty(shape)
    blank, order = torch.empty(shape, dtype=torch.bool), torch.empty(shape, dtype=torch.int64)
    kernels.call(
        'rank',
        *(x.data_ptr(), channels, content.data_ptr(), batch, height, width, window, -1.0 if reverse else 1.0),
        *(means.data_ptr(), scores.data_ptr(), blank.data_ptr(), order.data_ptr()),
        threads or torch.get_num_threads(),
    )
    shifts = (0, window // 2)
    return {shift: (scores[grid], blank[grid], order[grid]) for grid, shift in enumerate(shifts)}


def assign(
    kernels: Kernels, order: Tensor, counts: TierCounts, size: tuple[int, int], window: int, shift: int
) -> Assignment:
    """``windows.assignment.assign`` with all kept windows in one run, those of a branch in the order of the grid.

    Args:
        kernels: from ``load``.
        order: (B, windows) int64, most important first.
        counts: windows per tier in each image.
        size: (H, W) of the map in tokens.
        window: side of a window in tokens.
        shift: of the grid.
    """
    order = checked(order, 'order', ('batch', num_windows(*size, window)), torch.int64)
    batch, kept = len(order), counts.high + counts.low
    if sum(counts) != order.shape[1] or min(counts) < 0:
        raise ValueError(f'counts: {tuple(counts)} windows; their sum must be the {order.shape[1]} of the order')
    most = batch * kept * window**2
    rows, slots = torch.empty(most, dtype=torch.int64), torch.empty(most, dtype=torch.int64)
    kinds = (ctypes.c_int64 * (2 * NUM_KINDS))()
    grid, high_tokens = WindowGrid(*size, window, shift), ctypes.c_int64()
    tokens = kernels.call(
        'assign',
        *(order.data_ptr(), batch, ctypes.byref(grid), counts.high, counts.low),
        *(rows.data_ptr(), slots.data_ptr(), ctypes.addressof(kinds), ctypes.byref(high_tokens)),
    )
    if not kept:
        return Assignment(counts, ())
    padded = any(side % window for side in size)
    run = Run(
        rows=rows[:tokens],
        slots=slots[:tokens] if padded else None,
        windows=batch * kept,
        high_windows=batch * counts.high,
        high_tokens=high_tokens.value,
        segments=tuple(_segments(kinds)) if shift else (Segment(0, batch * kept, 0),),
    )
    return Assignment(counts, (run,))


def _segments(kinds: Iterable[int]) -> Iterator[Segment]:
    """Where each attention mask begins and ends, from how many windows of each (branch, kind) there are."""
    start = 0
    for number, kind in zip(kinds, [*range(NUM_KINDS)] * 2, strict=True):
        if number:
            yield Segment(start, start + number, kind)
        start += number
