"""Twin uniform grids (PTQ4ViT, ECCV 2022): half of the codes for each of two ranges whose steps differ by a shift."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ...registry import QUANTIZERS
from ..adaptive_log import GELU_MINIMUM
from ..observers import Samples
from .base import Quantizer, RangeFinder

SHIFTS = range(20)
FREE_STEPS = [0.01 + 1.19 * i / 100 for i in range(101)]
"""Of the full range's step: what the released code tries where it knows no shift."""


class TwinQuantizer(Quantizer):
    """Base of both: one number says where the ranges part. Ranges of other methods have no say in it.

    Args:
        code_parity: do as the released code.
    """

    def __init__(self, bits: int, per_channel: bool = False, code_parity: bool = False, **kwargs: Any) -> None:
        if per_channel:
            raise ValueError(f'{kwargs.get("name", "quantizer")}: a twin grid is per tensor; drop per_channel')
        super().__init__(bits, **kwargs)
        self.code_parity = code_parity
        self.top = 2 ** (self.bits - 1) - 1
        """Code of the largest value of a range that begins at zero."""

    @abstractmethod
    def candidates(self, high: Tensor) -> list[tuple[Tensor]]:
        """Arguments of ``set_grid`` to choose from, for values up to ``high``."""

    @abstractmethod
    def set_grid(self, step: Tensor) -> None:
        """Set where the ranges part and become calibrated."""

    @abstractmethod
    def quantized(self, x: Tensor, step: Tensor) -> Tensor:
        """``x`` on the grid of a candidate."""

    def best(self, samples: Samples, high: Tensor) -> Tensor:
        """The candidate of least squared error."""
        steps = [step for (step,) in self.candidates(high)]
        values = samples.values.to(self.calibrated.device)
        errors = [samples.squared_error(self.quantized(values, step).cpu()).sum() for step in steps]
        return steps[int(torch.stack(errors).argmin())]

    @torch.no_grad()
    def fit(self, samples: Samples, find_range: RangeFinder) -> None:
        self.set_grid(self.best(samples, samples.high.max()))

    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        return self.quantized(samples.values, self.best(samples, high.max()).cpu())

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        self.set_grid(self.best(Samples.exact(high.view(1, -1), None, self.name), high.max()))

    @property
    @abstractmethod
    def present(self) -> Tensor:
        """The candidate that is set."""

    def _grid(self, x: Tensor, out: Tensor | None) -> Tensor:
        values = self.quantized(x.float(), self.present).to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            values = x + (values - x).detach()
        return values if out is None else out.copy_(values)


@QUANTIZERS.register_module(name='TwinSoftmax')
class TwinSoftmaxQuantizer(TwinQuantizer):
    """For probabilities: [0, 2^-shift] with steps of 2^-shift large, and above it [0, 1] with steps of ``large``.

    The released code adds what both ranges give instead of choosing one: values above the border come out too large.
    """

    override_roles = ('attn',)
    shift: Tensor

    def __init__(self, bits: int, **kwargs: Any) -> None:
        super().__init__(bits, **kwargs)
        self.register_buffer('shift', torch.zeros(()))

    def candidates(self, high: Tensor) -> list[tuple[Tensor]]:
        return [(torch.tensor(float(shift), device=self.shift.device),) for shift in SHIFTS]

    @torch.no_grad()
    def set_grid(self, step: Tensor) -> None:
        self.shift.copy_(step)
        self.mark_calibrated()

    @property
    def present(self) -> Tensor:
        return self.shift

    def quantized(self, x: Tensor, step: Tensor) -> Tensor:
        border = torch.exp2(-step)
        small = border / self.top
        if self.code_parity:
            upper = x.clamp(min=border).mul(self.top).round().clamp(0, self.top) / self.top
            return upper + x.clamp(max=border).div(small).round().clamp(0, self.top) * small
        below = x.div(small).round().clamp(0, self.top) * small
        above = x.mul(self.top).round().clamp(0, self.top) / self.top
        return torch.where(x <= border, below, above)

    def describe(self) -> str:
        return f'[0, 2^-{int(self.shift)}], [0, 1]'


@QUANTIZERS.register_module(name='TwinGELU')
class TwinGELUQuantizer(TwinQuantizer):
    """For what GELU gives: negative values down to its minimum, positive ones with a step that is a shift larger.

    The released code searches the positive step freely.
    """

    override_roles = ('fc2_in',)
    step: Tensor

    def __init__(self, bits: int, **kwargs: Any) -> None:
        super().__init__(bits, **kwargs)
        self.negative = GELU_MINIMUM / (self.top + 1)
        self.register_buffer('step', torch.tensor(self.negative))

    def candidates(self, high: Tensor) -> list[tuple[Tensor]]:
        if self.code_parity:
            full = high.clamp(min=self.negative).to(self.step) / (self.top + 0.5)
            return [(full * share,) for share in FREE_STEPS]
        return [(torch.tensor(self.negative * 2.0**shift, device=self.step.device),) for shift in SHIFTS]

    @torch.no_grad()
    def set_grid(self, step: Tensor) -> None:
        self.step.copy_(step)
        self.mark_calibrated()

    @property
    def present(self) -> Tensor:
        return self.step

    def quantized(self, x: Tensor, step: Tensor) -> Tensor:
        below = x.div(self.negative).round().clamp(-self.top - 1, 0) * self.negative
        above = x.div(step).round().clamp(0, self.top) * step
        return torch.where(x < 0, below, above)

    def describe(self) -> str:
        return f'[{-GELU_MINIMUM:.4g}, 0], [0, {float(self.step) * self.top:.4g}]'
