"""Logarithmic grids for attention probabilities: log2, and the log-sqrt2 of RepQ-ViT (arXiv 2212.08254, 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...registry import QUANTIZERS
from ..functional import fake_log_quantize
from ..observers import Samples
from .base import Quantizer


@QUANTIZERS.register_module(name='Log2')
class Log2Quantizer(Quantizer):
    """Powers of two below ``scale``; values at least 0, per tensor, exact zeros stay zero."""

    override_roles: tuple[str, ...] = ('attn',)
    steps_per_octave = 1
    scale: Tensor

    def __init__(self, bits: int, per_channel: bool = False, **kwargs: Any) -> None:
        if per_channel:
            raise ValueError(f'{kwargs.get("name", "quantizer")}: a logarithmic grid is per tensor; drop per_channel')
        super().__init__(bits, **kwargs)
        self.register_buffer('scale', torch.ones(()))

    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        return fake_log_quantize(samples.values, _positive(high)[:, None], self.bits, self.steps_per_octave)

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        self.scale.copy_(_positive(high))

    def _grid(self, x: Tensor, out: Tensor | None) -> Tensor:
        return fake_log_quantize(x, self.scale, self.bits, self.steps_per_octave, out)

    def describe(self) -> str:
        return f'(0, {float(self.scale):.4g}]'


@QUANTIZERS.register_module(name='LogSqrt2')
class LogSqrt2Quantizer(Log2Quantizer):
    """Powers of sqrt(2): two steps per octave."""

    steps_per_octave = 2


def _positive(high: Tensor) -> Tensor:
    return torch.where(high > 0, high, torch.ones_like(high))
