"""Grids of simulated quantizers as ONNX's quantization nodes can say them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixaq_mmdet.deploy.grids import weight_codes
from mixaq_mmdet.quantization.learned_grid import MIN_STEP
from mixaq_mmdet.quantization.quantizers.learned import LearnedQuantizer
from mixaq_mmdet.quantization.quantizers.noisy import NoisyQuantizer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

INT8 = range(-128, 128)


class ActivationGrid(NamedTuple):
    """x^ = (clip(round((x + before) / scale) + zero_point, 0, 2^bits - 1) - zero_point) scale + after.

    Attributes:
        scale: the step.
        zero_point: code of zero.
        bits: of the codes.
        before: (channels,) added in front of rounding, or None.
        after: (channels,) added behind it, or None.
    """

    scale: float
    zero_point: int
    bits: int
    before: Tensor | None = None
    after: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing is added."""
        return self.before is None and self.after is None

    @property
    def symmetric(self) -> bool:
        """Whether signed codes with zero point 0 say the same."""
        return self.zero_point == 2 ** (self.bits - 1)


class WeightGrid(NamedTuple):
    """w = (codes - zero_point) scale, row by row.

    Attributes:
        codes: of the weight's shape, int8 or uint8.
        scale: (rows,) float32.
        zero_point: (rows,) of the same type; None where all are zero.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def values(self) -> Tensor:
        """The weight."""
        shape = (-1, *[1] * (self.codes.dim() - 1))
        codes = self.codes.float()
        if self.zero_point is not None:
            codes = codes - self.zero_point.float().view(shape)
        return codes * self.scale.view(shape)

    def unsigned(self) -> WeightGrid:
        """The same weight in uint8 codes: products with them do not saturate on CPUs without VNNI."""
        zero_point = torch.full_like(self.scale, 128) if self.zero_point is None else self.zero_point.int() + 128
        return WeightGrid((self.codes.int() + 128).to(torch.uint8), self.scale, zero_point.to(torch.uint8))


class Inexpressible(ValueError):
    """A grid that a target has no nodes for."""


def activation_grid(quantizer: nn.Module | None, name: str) -> ActivationGrid:
    """The grid of an activation quantizer.

    Raises:
        Inexpressible: for anything but one uniform grid for the whole tensor; it says what the grid is.
    """
    if isinstance(quantizer, UniformQuantizer) and quantizer.axis is None:
        grid = ActivationGrid(float(quantizer.scale), int(quantizer.zero_point), quantizer.bits)
        if isinstance(quantizer, NoisyQuantizer) and quantizer.noisy:
            grid = grid._replace(before=quantizer.noise.detach(), after=-quantizer.noise.detach())
        return _checked(grid, name)
    if isinstance(quantizer, LearnedQuantizer) and quantizer.axis is None and not quantizer.per_token:
        step = float(quantizer.step.detach().float().clamp(min=MIN_STEP))
        before, after = (None if offset is None else offset.detach().float() for offset in _offsets(quantizer))
        return ActivationGrid(step, -quantizer.lowest, quantizer.bits, before, after)
    raise Inexpressible(f'{name}: {_describe(quantizer)}')


def _checked(grid: ActivationGrid, name: str) -> ActivationGrid:
    if not 0 <= grid.zero_point <= 2**grid.bits - 1:
        raise Inexpressible(f'{name}: a grid that does not hold zero')
    return grid


def _offsets(quantizer: LearnedQuantizer) -> tuple[Any, Any]:
    return quantizer.before, quantizer.after


def _describe(quantizer: Any) -> str:
    if isinstance(quantizer, LearnedQuantizer) and quantizer.per_token:
        return 'a step for each token position of a window'
    if quantizer is None:
        return 'left float by an override'
    kind = type(quantizer).__name__.removesuffix('Quantizer')
    return f'a grid for each channel ({kind})' if getattr(quantizer, 'axis', None) is not None else f'a {kind} grid'


@torch.no_grad()
def weight_grid(layer: Any, path: str) -> WeightGrid:
    """The grid of a quantized layer's weight, with signed codes.

    Raises:
        Inexpressible: for a weight that int8 codes and a zero point per row cannot say.
    """
    try:
        codes, scale, zero_point, stride = weight_codes(layer, path)
    except ValueError as error:
        raise Inexpressible(str(error)) from error
    rows = (-1, *[1] * (codes.dim() - 1))
    centred = codes.int() * stride - zero_point.int().view(rows)
    scale = scale.detach().float().contiguous()
    if int(centred.min()) in INT8 and int(centred.max()) in INT8:
        return WeightGrid(centred.to(torch.int8), scale, None)
    shifted = zero_point.int() - 128
    if stride == 1 and int(shifted.min()) in INT8 and int(shifted.max()) in INT8:
        return WeightGrid((codes.int() - 128).to(torch.int8), scale, shifted.to(torch.int8))
    raise Inexpressible(f'{path}.weight: codes beyond int8')
