"""Where windows lie on a feature map: padding, shift, partition, attention regions.

A map of (height, width) tokens is padded at the bottom and right to whole windows, rolled up and left by ``shift`` and
cut into windows, in the order of stock Swin (row by row). Everything here depends on sizes only, so that callers can
cache it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = -1
NUM_KINDS = 4


def padded_size(height: int, width: int, window: int) -> tuple[int, int]:
    """The map's size after padding to whole windows."""
    return -(-height // window) * window, -(-width // window) * window


def num_windows(height: int, width: int, window: int) -> int:
    """Windows of one image, those of pure padding included."""
    padded_height, padded_width = padded_size(height, width, window)
    return (padded_height // window) * (padded_width // window)


def partition(x: Tensor, window: int, shift: int = 0) -> Tensor:
    """Cut a map into windows; padding is zero.

    Args:
        x: (B, H, W, ...) map.
        window: side of a window in tokens.
        shift: how far the map is rolled up and left before cutting.

    Returns:
        (B, windows, window * window, ...) tokens.
    """
    batch, height, width = x.shape[:3]
    features = x.shape[3:]
    padded_height, padded_width = padded_size(height, width, window)
    trailing = [0, 0] * len(features)
    x = F.pad(x, [*trailing, 0, padded_width - width, 0, padded_height - height])
    if shift:
        x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
    x = x.reshape(batch, padded_height // window, window, padded_width // window, window, *features)
    return x.transpose(2, 3).reshape(batch, -1, window * window, *features)


def reverse(windows: Tensor, height: int, width: int, window: int, shift: int = 0) -> Tensor:
    """Undo :func:`partition`.

    Args:
        windows: (B, windows, window * window, ...) tokens.
        height: rows of the map before padding.
        width: columns of the map before padding.
        window: side of a window in tokens.
        shift: the shift the windows were cut with.

    Returns:
        (B, H, W, ...) map.
    """
    batch, features = windows.shape[0], windows.shape[3:]
    padded_height, padded_width = padded_size(height, width, window)
    x = windows.reshape(batch, padded_height // window, padded_width // window, window, window, *features)
    x = x.transpose(2, 3).reshape(batch, padded_height, padded_width, *features)
    if shift:
        x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
    return x[:, :height, :width].contiguous()


def window_rows(height: int, width: int, window: int, shift: int = 0, device: torch.device | str = 'cpu') -> Tensor:
    """Which row of the flattened (height * width) stream each window token is; ``PADDING`` where it is none.

    Returns:
        (windows, window * window) int64.
    """
    numbered = torch.arange(1, height * width + 1, device=device).view(1, height, width)
    return partition(numbered, window, shift)[0] - 1


def region_ids(height: int, width: int, window: int, shift: int, device: torch.device | str = 'cpu') -> Tensor:
    """The attention region of each token: tokens of one shifted window attend only within their region.

    The roll brings the map's top below its bottom and its left beside its right; these neighbours are not adjacent.

    Returns:
        (windows, window * window) int64, 0 everywhere without shift.
    """
    padded_height, padded_width = padded_size(height, width, window)
    rows, columns = (
        _band(torch.arange(size, device=device), size, window, shift) for size in (padded_height, padded_width)
    )
    return partition((3 * rows[:, None] + columns[None, :])[None], window)[0]


def _band(index: Tensor, size: int, window: int, shift: int) -> Tensor:
    """0 before the last window, in it 1 for what stays and 2 for what was rolled around."""
    if not shift:
        return torch.zeros_like(index)
    return (index >= size - window).long() + (index >= size - shift).long()


def shift_mask(regions: Tensor) -> Tensor:
    """True where a token must not attend to another.

    Args:
        regions: (..., tokens) region ids.

    Returns:
        (..., tokens, tokens) bool.
    """
    return regions.unsqueeze(-1) != regions.unsqueeze(-2)


def window_kinds(height: int, width: int, window: int, shift: int, device: torch.device | str = 'cpu') -> Tensor:
    """Which of the ``NUM_KINDS`` attention masks a window needs: 0 interior, 1 last column, 2 last row, 3 corner.

    All windows of a kind share one mask, so none has to be stored per window.

    Returns:
        (windows,) int64, 0 everywhere without shift.
    """
    padded_height, padded_width = padded_size(height, width, window)
    last_row = torch.zeros(padded_height // window, dtype=torch.long, device=device)
    last_column = torch.zeros(padded_width // window, dtype=torch.long, device=device)
    if shift:
        last_row[-1], last_column[-1] = 2, 1
    return (last_row[:, None] + last_column[None, :]).flatten()


def kind_regions(window: int, shift: int, device: torch.device | str = 'cpu') -> Tensor:
    """The region ids of one window of each kind.

    Returns:
        (NUM_KINDS, window * window) int64; :func:`shift_mask` of it is the mask of each kind.
    """
    # on a map of 2 x 2 windows each window is of another kind, in order
    return region_ids(2 * window, 2 * window, window, shift, device)


class WindowGrid(NamedTuple):
    """What one block needs to know about a map's windows; a function of sizes only.

    Attributes:
        height: rows of tokens.
        width: columns of tokens.
        rows: (windows, tokens) from :func:`window_rows`.
        real: (windows, tokens) bool, False for padding.
        kinds: (windows,) from :func:`window_kinds`.
        padded: whether any token is padding.
        shifted: whether the windows are shifted.
    """

    height: int
    width: int
    rows: Tensor
    real: Tensor
    kinds: Tensor
    padded: bool
    shifted: bool


def window_grid(height: int, width: int, window: int, shift: int, device: torch.device | str = 'cpu') -> WindowGrid:
    """Build the :class:`WindowGrid` of a map."""
    rows = window_rows(height, width, window, shift, device)
    return WindowGrid(
        height,
        width,
        rows,
        rows != PADDING,
        window_kinds(height, width, window, shift, device),
        padded=padded_size(height, width, window) != (height, width),
        shifted=shift > 0,
    )
