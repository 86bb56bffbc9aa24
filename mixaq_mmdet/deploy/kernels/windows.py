"""Ranking and choosing windows with the kernels: the answers of ``mixaq_mmdet.windows``, in one call for each grid."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mixaq_mmdet.windows.assignment import Assignment, Run, Segment, TierCounts
from mixaq_mmdet.windows.geometry import NUM_KINDS, num_windows

from ..tensor_checks import checked
from .build import Kernels
from .structures import WindowGrid

VECTOR = 16  # channels that the kernel adds at once


def token_means(kernels: Kernels, x: Tensor, threads: int | None = None) -> Tensor:
    """Mean absolute activation of each token, (B, H, W, C) float32 to (B, H, W); ``L2.token_map`` in one pass."""
    x = checked(x, 'stream', ('batch', 'height', 'width', f'a multiple of {VECTOR} channels'))
    if x.shape[-1] % VECTOR:
        raise ValueError(f'stream: {x.shape[-1]} channels; give a multiple of {VECTOR} channels')
    means = torch.empty(x.shape[:-1])
    threads = threads or torch.get_num_threads()
    kernels.call('token_means', x.data_ptr(), means.numel(), x.shape[-1], means.data_ptr(), threads)
    return means


def rank(
    kernels: Kernels, means: Tensor, content: Tensor, window: int, shift: int, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank the windows of one grid as ``L2`` and ``rank_windows`` do.

    Args:
        kernels: from ``load``.
        means: (B, H, W) from :func:`token_means`.
        content: (B, H, W), 0 where a token sees only batch padding.
        window: side of a window in tokens.
        shift: of the grid.
        reverse: the smallest first.

    Returns:
        Scores, blank and order, (B, windows) each: float32, bool, int64.
    """
    means = checked(means, 'means', ('batch', 'height', 'width'))
    batch, height, width = means.shape
    content = checked(content.float(), 'content', (batch, height, width))
    shape = batch, num_windows(height, width, window)
    scores, blank = torch.empty(shape), torch.empty(shape, dtype=torch.bool)
    order = torch.empty(shape, dtype=torch.int64)
    grid = WindowGrid(height, width, window, shift)
    kernels.call(
        'rank',
        *(means.data_ptr(), content.data_ptr(), batch, ctypes.byref(grid), -1.0 if reverse else 1.0),
        *(scores.data_ptr(), blank.data_ptr(), order.data_ptr()),
    )
    return scores, blank, order


def assign(
    kernels: Kernels, order: Tensor, counts: TierCounts, size: tuple[int, int], window: int, shift: int
) -> Assignment:
    """``windows.assignment.assign`` with all kept windows in one run.

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
    rows, slots = torch.empty(2, batch * kept * window**2, dtype=torch.int64).unbind()
    kinds = torch.empty(2, NUM_KINDS, dtype=torch.int64)
    grid, high_tokens = WindowGrid(*size, window, shift), ctypes.c_int64()
    tokens = kernels.call(
        'assign',
        *(order.data_ptr(), batch, ctypes.byref(grid), counts.high, counts.low),
        *(rows.data_ptr(), slots.data_ptr(), kinds.data_ptr(), ctypes.byref(high_tokens)),
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


def _segments(kinds: Tensor) -> list[Segment]:
    """Where each attention mask begins and ends, from how many windows of each (branch, kind) there are."""
    segments, start = [], 0
    for number, kind in zip(kinds.flatten().tolist(), [*range(NUM_KINDS)] * 2, strict=True):
        if number:
            segments.append(Segment(start, start + number, kind))
        start += number
    return segments
