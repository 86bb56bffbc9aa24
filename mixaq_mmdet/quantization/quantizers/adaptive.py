"""Logarithmic quantizer whose base is searched (AdaLog, ECCV 2024): for attention probabilities and GELU's results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...registry import QUANTIZERS
from ..adaptive_log import (
    BASES,
    GELU_MINIMUM,
    RESOLUTION,
    adaptive_codes,
    adaptive_levels,
    best_bases,
    fake_adaptive_quantize,
)
from ..observers import Samples
from .base import Quantizer, RangeFinder


@QUANTIZERS.register_module(name='AdaptiveLog')
class AdaptiveLogQuantizer(Quantizer):
    """Powers of 2^(base / 37) below ``scale``, per tensor; exact zeros stay zero.

    Inputs of the FFN's second layer, which GELU gives, are moved up by ``shift``, quantized and moved back. Whoever
    fits a range finds the base of least squared error with it.
    """

    override_roles = ('attn', 'fc2_in')
    scale: Tensor
    base: Tensor
    levels: Tensor

    def __init__(self, bits: int, per_channel: bool = False, **kwargs: Any) -> None:
        if per_channel:
            raise ValueError(f'{kwargs.get("name", "quantizer")}: a logarithmic grid is per tensor; drop per_channel')
        super().__init__(bits, **kwargs)
        self.shift = GELU_MINIMUM if self.role == 'fc2_in' else 0.0
        start = RESOLUTION // 2
        self.register_buffer('scale', torch.ones(()))
        self.register_buffer('base', torch.tensor(start))
        self.register_buffer('levels', adaptive_levels(start, self.bits).clone())

    @torch.no_grad()
    def set_grid(self, scale: Tensor, base: Tensor) -> None:
        """Set the largest value and the base (a whole number) and become calibrated."""
        self.scale.copy_(scale)
        if int(base) not in BASES:
            raise ValueError(f'{self.name}: base={int(base)} must lie from {BASES[0]} to {BASES[-1]}')
        self.base.copy_(base)
        self.levels.copy_(adaptive_levels(int(base), self.bits))
        self.mark_calibrated()

    def shifted(self, samples: Samples) -> Tensor:
        """(rows, K) values of ``samples`` as the grid sees them, at least 0."""
        return (samples.values + self.shift).clamp(min=0)

    def fit(self, samples: Samples, find_range: RangeFinder) -> None:
        _, high = find_range(samples, self.simulate)
        scale = self._scale_for(high)
        base = best_bases(self.shifted(samples), samples.counts, scale, self.bits)
        self.set_grid(scale.view(()), base.view(()))

    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        values, scale = self.shifted(samples), self._scale_for(high)
        bases = best_bases(values, samples.counts, scale, self.bits)
        levels = torch.stack([adaptive_levels(int(base), self.bits) for base in bases]).to(values)
        codes = adaptive_codes(values, scale[:, None], bases[:, None], self.bits)
        return levels.gather(1, codes.long()) * scale[:, None] - self.shift

    def _scale_for(self, high: Tensor) -> Tensor:
        scale = high + self.shift
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        self.set_grid(self._scale_for(high), self.base.clone())

    def _grid(self, x: Tensor, out: Tensor | None) -> Tensor:
        values = fake_adaptive_quantize(
            x + self.shift if self.shift else x, self.scale, self.base, self.levels, self.bits
        )
        values = values - self.shift if self.shift else values
        return values if out is None else out.copy_(values)

    def describe(self) -> str:
        return f'({-self.shift:.4g}, {float(self.scale) - self.shift:.4g}], base 2^({int(self.base)}/{RESOLUTION})'
