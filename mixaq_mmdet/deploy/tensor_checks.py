"""What a tensor must be before its address goes to C++; the twins in plain torch ask the same and say the same."""

from __future__ import annotations

import torch
from torch import Tensor


def checked(
    x: Tensor,
    name: str,
    shape: tuple[int | str, ...],
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """``x``, contiguous, if it is what ``name`` has to be.

    Args:
        x: the tensor.
        name: what the error calls it.
        shape: its size in each dimension; a word where any size will do.
        dtype: its type; nothing is converted in silence.
        layout: in which it is made contiguous.

    Raises:
        ValueError: for another shape, type or device.
    """
    fits = x.dim() == len(shape) and all(isinstance(n, str) or n == m for n, m in zip(shape, x.shape, strict=True))
    if not fits or x.dtype != dtype or x.device.type != 'cpu':
        found = f'{tuple(x.shape)} {_word(x.dtype)} on {x.device}'
        raise ValueError(f'{name}: {found}; give {_word(dtype)} of shape ({", ".join(map(str, shape))}) on the CPU')
    return x.detach().contiguous(memory_format=layout)


def checked_in_place(x: Tensor, name: str, shape: tuple[int | str, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The same for a tensor that is written: a copy would take the result."""
    if checked(x, name, shape, dtype).data_ptr() != x.data_ptr():
        raise ValueError(f'{name} has gaps between its rows and is written in place; give it contiguous')
    return x


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')
