"""Uniform grid behind a fixed noise (NoisyQuant, CVPR 2023): x^ = Q(x + noise) - noise, a number for each channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...registry import QUANTIZERS
from ..functional import along, fake_quantize
from ..observers import Samples
from .uniform import UniformQuantizer


@QUANTIZERS.register_module(name='Noisy')
class NoisyQuantizer(UniformQuantizer):
    """A uniform grid per tensor with ``noise`` (channels,), zero until it is set.

    In integers the noise is an offset in front of rounding, and the next layer's bias takes it away.
    """

    override_roles = ()
    noise: Tensor

    def __init__(self, bits: int, **kwargs: Any) -> None:
        super().__init__(bits, **kwargs)
        self.register_buffer('noise', torch.zeros(self.channels))

    @property
    def noisy(self) -> bool:
        """Whether there is any noise."""
        return bool(self.noise.any())

    def _grid(self, x: Tensor, out: Tensor | None) -> Tensor:
        noise = along(self.noise.to(x.dtype), x, self.channel_axis)
        values = fake_quantize(x + noise, self.scale, self.zero_point, self.bits, self.axis) - noise
        return values if out is None else out.copy_(values)

    @torch.no_grad()
    def values_of(self, samples: Samples) -> Tensor:
        """Without the noise: samples do not say of which channel they are."""
        device = self.calibrated.device
        grid = self.scale.view(-1), self.zero_point.view(-1)
        return fake_quantize(samples.values.to(device), *grid, self.bits, axis=0).cpu()

    def describe(self) -> str:
        return f'{super().describe()}, noise {float(self.noise.min()):.3g} .. {float(self.noise.max()):.3g}'
