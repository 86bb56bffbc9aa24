"""Layers outside the blocks on exact integers in plain torch, and what other engines finish in torch as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .codes import to_codes
from .layouts import Geometry, Layer
from .products import EXACT_IN_FLOAT32


class ExactLayer:
    """A layer as a floating-point product of whole numbers, exact because its sums stay small enough.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: Layer) -> None:
        steps = integers(layer)
        largest = float(steps.abs().sum(1).max()) * (2**layer.grid.bits - 1)
        self.dtype = torch.float32 if largest < EXACT_IN_FLOAT32 else torch.float64
        self.layer, self.finish = layer, Finish(layer)
        self.steps = as_weight(steps.to(self.dtype), layer.geometry)

    def __call__(self, codes: Tensor) -> Tensor:
        """uint8 codes (B, C, H, W) or (..., K) to (B, N, H', W') or (..., N)."""
        x = codes.to(self.dtype) - self.layer.grid.zero_point
        if self.layer.geometry is None:
            return self.finish(F.linear(x, self.steps).float())
        _, stride, padding, dilation, groups = self.layer.geometry
        sums = F.conv2d(x, self.steps, None, stride, padding, dilation, groups)
        return self.finish(sums.float().contiguous(memory_format=torch.channels_last), codes.shape[2:])


class Finish:
    """What follows the sums of a layer: steps, bias, ReLU or GELU, codes.

    Args:
        layer: the layer.
        scaled: whether results come multiplied by their steps.
    """

    def __init__(self, layer: Layer, scaled: bool = False) -> None:
        self.layer = layer
        step = torch.ones(len(layer.weights.scale)) if scaled else layer.weights.scale * layer.grid.scale
        self.step, self.offsets = step, None
        self.bias = layer.weights.bias
        after = layer.grid.after
        if after is not None:
            values = integers(layer) * layer.weights.scale.double().unsqueeze(1)
            of_places = values * self._spread(after.double(), values.shape)
            if layer.geometry is not None and any(layer.geometry.padding):
                by_place = of_places.view(len(values), -1, *layer.geometry.kernel)
                self.offsets = by_place.sum(1, keepdim=True).float()
            else:
                self.bias = (self.bias.double() + of_places.sum(1)).float()

    def _spread(self, after: Tensor, shape: torch.Size) -> Tensor:
        """Offsets by channel, as wide as the weights (N, K)."""
        geometry = self.layer.geometry
        if geometry is None:
            return after
        area, groups = geometry.kernel[0] * geometry.kernel[1], geometry.groups
        by_group = after.view(groups, -1).repeat_interleave(area, dim=1)
        return by_group.repeat_interleave(shape[0] // groups, dim=0)

    def __call__(self, sums: Tensor, size: torch.Size | None = None) -> Tensor:
        """Sums (B, N, H', W') of a map of ``size``, or (..., N), to the layer's results; ``sums`` is overwritten."""
        view = (-1,) if self.layer.geometry is None else (-1, 1, 1)
        x = torch.addcmul(self.bias.view(view), sums, self.step.view(view))
        if self.offsets is not None and size is not None:
            x = x + self._of_offsets(size)
        if self.layer.relu:
            x = x.relu_()
        elif self.layer.gelu:
            x = F.gelu(x)
        return x if self.layer.out_grid is None else to_codes(x, self.layer.out_grid)

    def _of_offsets(self, size: torch.Size) -> Tensor:
        """(1, N, H', W'): what the offsets of the inputs add; less at the border, where the padding has none."""
        assert self.offsets is not None
        assert self.layer.geometry is not None
        _, stride, padding, dilation, _ = self.layer.geometry
        return F.conv2d(torch.ones(1, 1, *size), self.offsets, None, stride, padding, dilation)


def integers(layer: Layer) -> Tensor:
    """Codes minus zero points, (N, K) float64."""
    return layer.weights.codes.double() - layer.weights.zero_point.double().unsqueeze(1)


def pads(geometry: Geometry | None) -> bool:
    """Whether zeros are put around the map."""
    return geometry is not None and any(geometry.padding)


def as_weight(steps: Tensor, geometry: Geometry | None) -> Tensor:
    """(N, K), of a convolution (N, channels of a group, rows, columns)."""
    return steps if geometry is None else steps.view(len(steps), -1, *geometry.kernel)
