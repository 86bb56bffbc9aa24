"""A linear layer or convolution on torch's own oneDNN int8 operators.

They take uint8 inputs of any zero point and int8 weights. They ignore zero points of weights without a word, so that
weights that have some get the sum of each patch as one output more.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .exact_layer import Finish, as_weight, pads
from .layouts import Layer, LinearWeights


def needs_sums(weights: LinearWeights) -> bool:
    """Whether weights are no int8 numbers around zero."""
    return weights.codes.dtype != torch.int8 or bool(weights.zero_point.any())


def int8_layer(layer: Layer, packed: Tensor | None = None) -> FusedLayer | FinishedLayer:
    """One call, and where weights have zero points or offsets meet padding a second one in torch.

    Args:
        layer: the layer.
        packed: its weights as another such layer has packed them.
    """
    fused = not needs_sums(layer.weights) and (layer.grid.after is None or not pads(layer.geometry))
    return FusedLayer(layer, packed) if fused else FinishedLayer(layer, packed)


class FusedLayer:
    """A layer of symmetric int8 weights.

    Args:
        layer: the layer.
        packed: its weights as another layer has packed them.
    """

    def __init__(self, layer: Layer, packed: Tensor | None = None) -> None:
        self.post, self.out_grid = 'gelu' if layer.gelu else 'relu' if layer.relu else 'none', layer.out_grid
        bias = Finish(layer).bias
        self.product = Product(layer, layer.weights.codes, layer.weights.scale, bias, packed)

    def __call__(self, codes: Tensor) -> Tensor:
        """uint8 codes to float32, or to uint8 on the grid of the result."""
        grid = self.out_grid
        if grid is None:
            return self.product(codes, self.post)
        out = self.product(codes, self.post, grid.scale, grid.zero_point, torch.uint8)
        return out if grid.bits == 8 else out.clamp_(max=2**grid.bits - 1)

    def add(self, codes: Tensor, onto: Tensor) -> None:
        """Add the result, of a linear layer and without anything behind it, to float32 (..., N) in place."""
        self.product.add(codes, onto)


class FinishedLayer:
    """A layer whose weights have zero points (w = (q - z) s), or whose input has offsets behind which zeros are padded.

    The product of the zero points is z s times the sum of the inputs, which comes as one output more.

    Args:
        layer: the layer.
        packed: its weights as another layer has packed them.
    """

    def __init__(self, layer: Layer, packed: Tensor | None = None) -> None:
        weights = layer.weights
        codes, scale, zero_point = weights.codes, weights.scale, weights.zero_point.float()
        if codes.dtype != torch.int8:  # odd numbers of nine bits: w = 2 s (q + 1/2)
            codes, scale, zero_point = ((codes - 1) // 2).to(torch.int8), 2 * scale, (zero_point - 1) / 2
        self.sums = bool(zero_point.any())
        self.finish = Finish(layer, scaled=True)
        self.correction = (-zero_point * scale).view((-1,) if layer.geometry is None else (-1, 1, 1))
        self.axis = -1 if layer.geometry is None else 1
        if self.sums:
            codes = torch.cat([codes, torch.ones_like(codes[:1])])
            scale = torch.cat([scale, torch.ones(1)])
        self.product = Product(layer, codes, scale, None, packed)

    def __call__(self, codes: Tensor) -> Tensor:
        """uint8 codes to float32, or to uint8 on the grid of the result."""
        out = self.product(codes)
        if self.sums:
            count = out.shape[self.axis] - 1
            out = out.narrow(self.axis, 0, count).addcmul(out.narrow(self.axis, count, 1), self.correction)
        return self.finish(out, codes.shape[2:] if self.axis == 1 else None)

    def add(self, codes: Tensor, onto: Tensor) -> None:
        """Add the result, of a linear layer, to float32 (..., N) in place."""
        onto += self(codes)


class Product:
    """The operators with their arguments; weights are packed once.

    Args:
        layer: geometry and the input's grid.
        codes: (N, K) int8.
        scale: (N,).
        bias: (N,), or None.
        packed: the weights as another product of the same codes has packed them.
    """

    def __init__(
        self, layer: Layer, codes: Tensor, scale: Tensor, bias: Tensor | None, packed: Tensor | None = None
    ) -> None:
        grid, geometry = layer.grid, layer.geometry
        self.x_scale, self.x_zero = grid.scale, grid.zero_point
        self.scale, self.bias = scale.contiguous(), bias
        self.no_zeros = torch.zeros(len(scale), dtype=torch.int64)
        self.walk: tuple[Any, ...] | None = None
        if geometry is None:
            pack = torch.ops.onednn.qlinear_prepack
            self.packed = pack(codes.contiguous(), None) if packed is None else packed
            return
        self.walk = (*(list(pair) for pair in geometry[1:4]), geometry.groups)
        weight = as_weight(codes, geometry).contiguous()
        self.kernel_width = weight.shape[-1]
        self.packed = torch.ops.onednn.qconv_prepack(weight, self.scale, self.x_scale, self.x_zero, *self.walk, None)

    def __call__(
        self,
        codes: Tensor,
        post: str = 'none',
        out_scale: float = 1.0,
        out_zero: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """uint8 (B, C, H, W) or (..., K) to (B, N, H', W') channels last or (..., N)."""
        weights = (self.packed, self.scale, self.no_zeros, self.bias)
        out: tuple[Any, ...] = (out_scale, out_zero, dtype, post, [], 'none' if post == 'gelu' else '')
        if self.walk is None:
            return torch.ops.onednn.qlinear_pointwise(codes, self.x_scale, self.x_zero, *weights, *out)
        if narrow := self._gives_one_column(codes.shape[-1]):
            codes = F.pad(codes, (0, self.walk[0][1]), value=self.x_zero)
        codes = codes.contiguous(memory_format=torch.channels_last)
        x = torch.ops.onednn.qconv2d_pointwise(codes, self.x_scale, self.x_zero, *weights, *self.walk, *out)
        return x[..., :1].contiguous(memory_format=torch.channels_last) if narrow else x

    def _gives_one_column(self, width: int) -> bool:
        """Whether steps of more than one end in a map of one column, whose sums AMX gets wrong; it gets a second."""
        assert self.walk is not None
        stride, padding, dilation, _ = self.walk
        reach = dilation[1] * (self.kernel_width - 1)
        return max(stride) > 1 and (width + 2 * padding[1] - reach - 1) // stride[1] == 0

    def add(self, codes: Tensor, onto: Tensor) -> None:
        """The product of a linear layer, added to float32 (..., N) in place."""
        weights = (self.packed, self.scale, self.no_zeros, onto, self.bias)
        out: tuple[Any, ...] = (1.0, 0, torch.float32, 1.0, 0, 'sum', 1.0, 'none', [], '')
        torch.ops.onednn.qlinear_pointwise.binary(codes, self.x_scale, self.x_zero, *weights, *out)
