"""Linear layers and convolutions of necks and heads, by the kernels."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from ..layouts import Geometry, Layer
from ..tensor_checks import checked
from . import structures
from .build import Kernels
from .operation import Operation, top
from .panels import pack_linear

PLAIN = Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1)
VECTOR = 16


def layer_unsupported(layer: Layer) -> str | None:
    """Why the kernels cannot run a layer; None if they can."""
    grid, geometry = layer.grid, layer.geometry or PLAIN
    if layer.gelu:
        return 'GELU behind a layer outside of the blocks'
    if any(part is not None for part in (grid.steps, grid.channel_steps, grid.levels)):
        return 'more than one step of an input'
    if grid.after is not None and any(geometry.padding):
        return 'offsets of an input that is padded'
    if geometry.groups > 1:
        return f'{geometry.groups} groups'
    if layer.weights.codes.shape[1] % 4:
        return f'{layer.weights.codes.shape[1]} inputs are no multiple of 4'
    return None


class KernelLayer(Operation):
    """A layer from codes to floats or codes.

    Args:
        kernels: from ``load``.
        layer: one that ``layer_unsupported`` has nothing against.
    """

    def __init__(self, kernels: Kernels, layer: Layer) -> None:
        super().__init__(kernels)
        self.geometry = layer.geometry or PLAIN
        self.is_map, self.to_codes = layer.geometry is not None, layer.out_grid is not None
        weights, grid = layer.weights, layer.grid
        self.outputs, inputs = weights.codes.shape
        places = math.prod(self.geometry.kernel)
        self.channels = inputs // places
        if places > 1:
            by_place = weights.codes.view(self.outputs, self.channels, places).transpose(1, 2)
            weights = weights._replace(codes=by_place.reshape(self.outputs, inputs))
        factor, addend, low, high = None, None, 0.0 if layer.relu else -math.inf, math.inf
        if layer.out_grid is not None:
            zero = layer.out_grid.zero_point
            factor = torch.full((2, self.outputs), 1 / layer.out_grid.scale, dtype=torch.float64)
            addend, low, high = torch.full_like(factor, zero), float(zero if layer.relu else 0), top(layer.out_grid)
        product = self.linear(pack_linear(weights, (grid, grid), factor, addend), 'layer')
        product.outputs = -(-self.outputs // VECTOR) * VECTOR
        self._layer = structures.Layer(
            product,
            self.channels,
            *(structures.IntPair(*pair) for pair in self.geometry[:4]),
            *(self.outputs, grid.zero_point, self.to_codes, low, high),
        )

    def __call__(self, codes: Tensor) -> Tensor:
        """uint8 codes (B, C, H, W) to (B, N, H', W') channels last, or (..., K) to (..., N)."""
        shape = tuple(codes.shape)
        lead: tuple[int, ...]
        if self.is_map:
            sizes = ('batch', self.channels, 'height', 'width')
            codes = checked(codes, 'codes', sizes, torch.uint8, torch.channels_last)
            batch, _, height, width = shape
            lead = batch, *self._walked(height, width)
        else:
            codes = checked(codes, 'codes', (*('rows',) * (len(shape) - 1), self.channels), torch.uint8)
            batch, height, width, lead = math.prod(shape[:-1]), 1, 1, shape[:-1]
        out = torch.empty(*lead, self.outputs, dtype=torch.uint8 if self.to_codes else torch.float32)
        self.kernels.call(
            'layer',
            *(ctypes.addressof(self._layer), codes.data_ptr(), codes.numel(), batch, height, width),
            *(out.data_ptr(), out.numel(), torch.get_num_threads()),
        )
        return out.permute(0, 3, 1, 2) if self.is_map else out

    def _walked(self, *size: int) -> list[int]:
        kernels, strides, paddings, dilations, _ = self.geometry
        walk = zip(size, kernels, strides, paddings, dilations, strict=True)
        walked = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k, stride, padding, dilation in walk]
        if min(walked) < 1:
            raise ValueError(
                f'codes: the kernel is larger than the map of {size[0]} x {size[1]} places; give a larger one'
            )
        return walked
