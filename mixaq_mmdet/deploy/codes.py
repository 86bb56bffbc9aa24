"""Floats to codes of a grid, in the layout that products read."""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels.portable import load_portable
from .layouts import Grid
from .tensor_checks import checked


def to_codes(x: Tensor, grid: Grid) -> Tensor:
    """Codes of a tensor on a grid of one step, offsets by channel.

    Args:
        x: (B, C, H, W), made channels last in memory, or (..., C); float32.
        grid: the grid.

    Returns:
        uint8 of the same shape and layout.
    """
    image = x.dim() == 4
    sizes = tuple(x.shape)
    x = checked(x, 'input', sizes, layout=torch.channels_last if image else torch.contiguous_format)
    kernels, _ = load_portable()
    if kernels is None:
        return codes_in_torch(x, grid)
    out = torch.empty_like(x, dtype=torch.uint8)
    channels = sizes[1] if image else sizes[-1]
    before = None if grid.before is None else checked(grid.before, 'offset before rounding', (channels,))
    kernels.call(
        'to_codes',
        *(x.data_ptr(), x.numel() // max(channels, 1), channels, None if before is None else before.data_ptr()),
        *(grid.scale, grid.zero_point, 2**grid.bits - 1, out.data_ptr(), torch.get_num_threads()),
    )
    return out


def codes_in_torch(x: Tensor, grid: Grid) -> Tensor:
    """The same, operation by operation."""
    if grid.before is not None:
        x = x + (grid.before.view(-1, 1, 1) if x.dim() == 4 else grid.before)
    return torch.div(x, grid.scale).round_().add_(grid.zero_point).clamp_(0, 2**grid.bits - 1).to(torch.uint8)
