"""A call into the library: its parameters held as tensors, their addresses in a structure."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ..layouts import Grid
from ..tensor_checks import checked
from .build import Kernels
from .panels import PackedLinear
from .structures import Linear, Pair

_ROWS = {'offset': torch.int32, 'multiplier': torch.float32, 'addend': torch.float32}


class Operation:
    """Keeps the tensors whose addresses its structure holds.

    Args:
        kernels: from ``load``.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._kept: list[Tensor] = []

    def keep(self, tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
        """The address of a copy of a tensor of the shape that the library reads.

        A copy, because a model's own tensors move: sending one to another process puts it into shared memory.
        """
        self._kept.append(checked(tensor, name, shape, dtype).clone())
        return self._kept[-1].data_ptr()

    def pair(self, tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Any:
        """Addresses of both rows of a (2, *shape) tensor."""
        self.keep(tensor, name, (2, *shape), dtype)
        return Pair(*(row.data_ptr() for row in self._kept[-1]))

    def linear(self, packed: PackedLinear, name: str) -> Linear:
        """The structure of a packed layer."""
        panels = packed.panels.shape[0], packed.inputs // 4, 32, 4
        columns = 32 * panels[0]
        zero_point = packed.zero_point
        if columns < packed.outputs:
            raise ValueError(f'{name}: {columns} packed columns are fewer than its {packed.outputs} outputs')
        rows = (self.pair(getattr(packed, row), f'{name}.{row}', (columns,), _ROWS[row]) for row in _ROWS)
        return Linear(
            self.keep(packed.panels, f'{name}.panels', panels, torch.int8),
            None if zero_point is None else self.keep(zero_point, f'{name}.zero_point', (columns,), torch.int32),
            *rows,
            *(packed.inputs, packed.outputs, packed.doubled),
            (ctypes.c_int32 * 2)(*packed.row_shift),
            (ctypes.c_int32 * 2)(*packed.held),
        )


def norm_on_grid(gamma: Tensor, beta: Tensor, grids: tuple[Grid, ...]) -> tuple[Tensor, Tensor]:
    """Affine parameters (branches, C) of norms whose results are codes before rounding."""
    scale = torch.tensor([grid.scale for grid in grids], dtype=torch.float64).view(-1, 1)
    zero_point = torch.tensor([grid.zero_point for grid in grids], dtype=torch.float64).view(-1, 1)
    none = torch.zeros(beta.shape[-1])
    before = torch.stack([none if grid.before is None else grid.before for grid in grids])
    beta = beta.detach().double() + before
    return (gamma.detach().double() / scale).float(), (beta / scale + zero_point).float()


def top(grid: Grid) -> float:
    """The highest code."""
    return 2**grid.bits - 1
