"""Quantized convolutions as modules that leave nodes in a graph, see ``quantize.py``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaq_mmdet.quantization import BranchAware, QuantConvTranspose2d, Split

from .grids import ActivationGrid, Inexpressible, WeightGrid
from .nodes import dequantize, node
from .quantize import ActivationNodes, ProductNodes


class ConvNodes(nn.Module):
    """A quantized convolution: Quantize and Dequantize around a float one, which OpenVINO and TensorRT fuse.

    Args:
        layer: the simulated layer, for stride, padding and so on.
        grid: of the input.
        weight: of the weight.
        signed: see :class:`ActivationNodes`.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor

    def __init__(self, layer: nn.Conv2d, grid: ActivationGrid, weight: WeightGrid, signed: bool = False) -> None:
        super().__init__()
        if not grid.plain and (layer.padding_mode != 'zeros' or any(_pair(layer.padding))):
            raise Inexpressible('offsets in front of a convolution that pads')
        shifted = grid if grid.before is None else grid._replace(before=grid.before.view(-1, 1, 1))
        self.activation = ActivationNodes(shifted, signed)
        self.kernel_size, self.stride, self.groups = layer.kernel_size, layer.stride, layer.groups
        self.options: dict[str, Any] = {
            'stride': layer.stride,
            'padding': layer.padding,
            'dilation': layer.dilation,
            'groups': layer.groups,
        }
        values = weight.values()
        bias = values.new_zeros(len(values)) if layer.bias is None else layer.bias.detach().float()
        if grid.after is not None:
            bias = bias + (values.sum((2, 3)) @ grid.after)
        self.register_buffer('codes', weight.codes)
        self.register_buffer('scale', weight.scale)
        self.register_buffer('zero_point', weight.zero_point)
        self.register_buffer('bias', bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H', W')."""
        weight = dequantize(self.codes, self.scale, self.zero_point, 0)
        return F.conv2d(self.activation(x), weight, self.bias, **self.options)


class IntegerConvNodes(ConvNodes):
    """ConvInteger: a Conv between Quantize and Dequantize is float in ONNX Runtime unless its output is quantized too.

    Its weights have one zero point for all: where rows have their own, the sum of each patch is a convolution more.
    Weights are uint8, because int8 ones take a kernel that is three to five times slower there.
    """

    zero_point: Tensor
    rows: Tensor | None
    ones: Tensor

    def __init__(self, layer: nn.Conv2d, grid: ActivationGrid, weight: WeightGrid) -> None:
        super().__init__(layer, grid, weight)
        zero_points = weight.zero_point
        own = zero_points is not None and bool((zero_points != zero_points[0]).any())
        common = 128 if own or zero_points is None else int(zero_points[0])
        rows = zero_points.float() - common if zero_points is not None and own else None
        self.register_buffer('zero_point', torch.tensor(common, dtype=torch.uint8))
        self.register_buffer('rows', None if rows is None else rows.view(1, -1, 1, 1))
        self.register_buffer('ones', torch.full_like(self.codes[:1], common + 1) if own else None)
        self.register_buffer('scale', (weight.scale * grid.scale).view(1, -1, 1, 1))
        self.register_buffer('bias', self.bias.view(1, -1, 1, 1))

    @staticmethod
    def fits(layer: nn.Conv2d, weight: WeightGrid) -> bool:
        """Whether there is a kernel for it."""
        own = weight.zero_point is not None and bool((weight.zero_point != weight.zero_point[0]).any())
        return layer.padding_mode == 'zeros' and not isinstance(layer.padding, str) and not (own and layer.groups > 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H', W')."""
        codes = self.activation.codes(x)
        sums = self._convolve(codes, self.codes)
        if self.rows is not None:
            sums = sums - self.rows * self._convolve(codes, self.ones)
        return sums * self.scale + self.bias

    def _convolve(self, codes: Tensor, weight: Tensor) -> Tensor:
        """Sums of products of codes, as floats."""
        stride, padding, dilation = (_pair(self.options[name]) for name in ('stride', 'padding', 'dilation'))
        kernel = tuple(weight.shape[2:])
        sides = [
            (codes.shape[2 + axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
            for axis in (0, 1)
        ]
        return node(
            'ConvInteger',
            [codes, weight, self.activation.zero_point, self.zero_point],
            (codes.shape[0], weight.shape[0], *sides),
            torch.int32,
            kernel_shape=list(kernel),
            pads=list(padding * 2),
            strides=list(stride),
            dilations=list(dilation),
            group=self.groups,
        ).float()


class PatchGemm(BranchAware, nn.Module):
    """A convolution whose kernel is its stride, or 1 x 1, as a product of rows: (B, C, H, W) to (B, N, H', W')."""

    def __init__(self, layer: nn.Conv2d, product: ProductNodes) -> None:
        super().__init__()
        self.kernel_size, self.stride = layer.kernel_size, layer.stride
        self.kernel = _pair(layer.kernel_size)
        self.product = product

    @staticmethod
    def fits(layer: nn.Conv2d) -> bool:
        """Whether a convolution is such a product."""
        plain = not any(_pair(layer.padding)) and layer.groups == 1 and _pair(layer.dilation) == (1, 1)
        return plain and _pair(layer.kernel_size) == _pair(layer.stride)

    def forward(self, x: Tensor, split: Split | None = None) -> Tensor:
        """Rows of kernel-sized patches, multiplied and put back on the map."""
        batch, channels, height, width = x.shape
        rows, columns = height // self.kernel[0], width // self.kernel[1]
        x = x[:, :, : rows * self.kernel[0], : columns * self.kernel[1]]
        x = x.reshape(batch, channels, rows, self.kernel[0], columns, self.kernel[1]).permute(0, 2, 4, 1, 3, 5)
        out = self.product(x.reshape(batch * rows * columns, -1))
        return out.reshape(batch, rows, columns, -1).permute(0, 3, 1, 2)


class PixelGemm(nn.Module):
    """A deconvolution whose kernel is its stride, as a product of pixels."""

    def __init__(self, layer: QuantConvTranspose2d, product: ProductNodes) -> None:
        super().__init__()
        self.side, self.outputs = layer.stride[0], layer.out_channels
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H * side, W * side)."""
        batch, channels, height, width = x.shape
        out = self.product(x.permute(0, 2, 3, 1).reshape(batch * height * width, channels))
        out = out.reshape(batch, height, width, self.side, self.side, self.outputs).permute(0, 5, 1, 3, 2, 4)
        return out.reshape(batch, self.outputs, height * self.side, width * self.side)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
