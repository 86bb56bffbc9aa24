"""Uniform affine grid: symmetric or asymmetric, per tensor or per channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...registry import QUANTIZERS
from ..functional import affine_parameters, fake_quantize
from ..learned_grid import MIN_STEP, Parameters, Part, learned_fake_quantize
from ..observers import Samples
from .base import Quantizer


@QUANTIZERS.register_module(name='Uniform')
class UniformQuantizer(Quantizer):
    """x^ = (clip(round(x / scale) + zero_point, 0, 2^b - 1) - zero_point) scale.

    Args:
        symmetric: centre the grid on zero.
        include_zero: widen ranges to hold 0, so that zeros stay exactly zero.
    """

    override_roles: tuple[str, ...] = ('attn', 'fc2_in')
    scale: Tensor
    zero_point: Tensor

    def __init__(self, bits: int, symmetric: bool = False, include_zero: bool = True, **kwargs: Any) -> None:
        super().__init__(bits, **kwargs)
        self.symmetric = symmetric
        self.include_zero = include_zero
        self.register_buffer('scale', torch.ones(self.shape))
        self.register_buffer('zero_point', torch.zeros(self.shape))

    def parameters_for(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for ranges of any shape."""
        return affine_parameters(low, high, self.bits, self.symmetric, self.include_zero)

    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        scale, zero_point = self.parameters_for(low, high)
        return fake_quantize(samples.values, scale, zero_point, self.bits, axis=0)

    @torch.no_grad()
    def set_grid(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero point (whole numbers) directly and become calibrated."""
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.mark_calibrated()

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        self.set_grid(*self.parameters_for(low, high))

    def learnable(self) -> list[Tensor]:
        """The scale of a tensor's grid; zero points stay, and so do grids of many scales."""
        return [self.scale] if self.axis is None else []

    @torch.no_grad()
    def settle(self) -> None:
        """Keep the scale above zero."""
        self.scale.clamp_(min=MIN_STEP)

    def _grid(self, x: Tensor, out: Tensor | None) -> Tensor:
        if self.scale.requires_grad and torch.is_grad_enabled():
            lowest = -int(self.zero_point)
            part = Part(0, len(x), lowest, lowest + 2**self.bits - 1, gradient_scale=1.0)
            return learned_fake_quantize(x, [part], [Parameters(self.scale, None, None)])
        return fake_quantize(x, self.scale, self.zero_point, self.bits, self.axis, out)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Values of the lowest and the highest code."""
        return -self.zero_point * self.scale, (2**self.bits - 1 - self.zero_point) * self.scale

    def describe(self) -> str:
        low, high = self.ends()
        return f'[{float(low.min()):.4g}, {float(high.max()):.4g}]'
