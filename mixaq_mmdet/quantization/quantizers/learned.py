"""Learned step sizes: LSQ with two offsets (LSQ arXiv 1902.08153, OFQ arXiv 2302.02210)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...registry import QUANTIZERS
from ..functional import along, distance_to_boundary
from ..learned_grid import MIN_STEP, Parameters, Part, learned_fake_quantize, learned_linear
from ..observers import Samples
from .base import Quantizer, RangeFinder

SEARCH_STEPS = 80


@QUANTIZERS.register_module(name='Learned')
class LearnedQuantizer(Quantizer):
    """x^ = step round(clip((x + before) / step, Qn, Qp)) + after; step and offsets are trained.

    The gradient of a step is multiplied by 1 / sqrt(Qp N). N counts the elements of *one window* that share the step -
    of one token where there are no windows, of the whole tensor for a weight: with the batch inside N, steps would
    react to batch size, image size and sampled ratios.

    Args:
        unsigned: codes from 0 to 2^b - 1 instead of -2^(b-1) to 2^(b-1) - 1.
        offsets: learn ``before`` and ``after`` per channel; otherwise there are none.
        per_token: one step for each token position of a window instead of one for the tensor; not with per_channel.
        weight: the tensor is a parameter, all of which is there at once.
    """

    knows_slots = True
    spares_linear = True

    def __init__(
        self,
        bits: int,
        unsigned: bool = False,
        offsets: bool = False,
        per_token: bool = False,
        weight: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(bits, **kwargs)
        self.unsigned = unsigned
        self.of_weight = weight  # "weight" would be taken for a parameter by initialisers
        self.per_token = per_token and self.tokens > 1
        self.lowest: int = 0 if unsigned else -(2 ** (bits - 1))
        self.highest: int = self.lowest + 2**bits - 1
        self.step = nn.Parameter(torch.ones((self.tokens,) if self.per_token else self.shape))
        self.before = nn.Parameter(torch.zeros(self.channels)) if offsets else None
        self.after = nn.Parameter(torch.zeros(self.channels)) if offsets else None

    def _grid(self, x: Tensor, out: Tensor | None, slots: Tensor | None = None) -> Tensor:
        part = self._part(x, 0, x.shape[0], slots)
        return learned_fake_quantize(x, [part], [self._group(x, slots)], out)

    def with_low(self, low: Quantizer, x: Tensor, high: int, slots: Tensor | None = None) -> Tensor:
        """As in every quantizer, in one pass over both branches' entries."""
        if not self._joins(low, x):
            return super().with_low(low, x, high, slots)
        return learned_fake_quantize(x, *self._joined(low, x, high, slots))

    def linear_with_low(
        self, low: Quantizer, x: Tensor, high: int, weight: Tensor, bias: Tensor | None, slots: Tensor | None = None
    ) -> Tensor:
        """As in every quantizer, keeping the quantized input only where autocast chooses the product's type."""
        if not self._joins(low, x) or torch.is_autocast_enabled(x.device.type) or x.dtype != weight.dtype:
            return super().linear_with_low(low, x, high, weight, bias, slots)
        return learned_linear(x, weight, bias, *self._joined(low, x, high, slots))

    def _joins(self, low: Quantizer, x: Tensor) -> bool:
        return isinstance(low, LearnedQuantizer) and self.usable() and low.usable() and x.dim() > 0

    def _joined(
        self, low: Quantizer, x: Tensor, high: int, slots: Tensor | None
    ) -> tuple[list[Part], list[Parameters]]:
        assert isinstance(low, LearnedQuantizer)
        slots_high, slots_low = (None, None) if slots is None else (slots[:high], slots[high:])
        parts = [self._part(x, 0, high, slots), low._part(x, high, x.shape[0], slots)]
        return parts, [self._group(x, slots_high), low._group(x, slots_low)]

    def _part(self, x: Tensor, start: int, stop: int, slots: Tensor | None) -> Part:
        scale = 1 / math.sqrt(self.highest * self._elements(x, slots))
        return Part(start, stop, self.lowest, self.highest, scale)

    def _elements(self, x: Tensor, slots: Tensor | None) -> int:
        """N: how many elements of one window (token, weight) share a step."""
        if self.of_weight:
            return max(x.numel() // self.step.numel(), 1)
        if self.tokens == 1:
            return self.channels
        entry = math.prod(x.shape[1:])  # a window's elements, or a token's
        window = entry if slots is None else entry * self.tokens
        return max(window // self.step.numel(), 1)

    def _group(self, x: Tensor, slots: Tensor | None) -> Parameters:
        return Parameters(
            self._placed_step(x, slots), self._along_channels(self.before, x), self._along_channels(self.after, x)
        )

    def _placed_step(self, x: Tensor, slots: Tensor | None) -> Tensor:
        """The step, shaped for ``x``: along its token axis, or one for each token where slots tell the positions."""
        if self.per_token:
            if slots is not None:
                return self.step[slots % self.tokens].unsqueeze(1)
            return self._shaped(self.step, x, self.token_axis)
        return self.step if self.axis is None else self._shaped(self.step, x, self.axis)

    def _along_channels(self, offset: Tensor | None, x: Tensor) -> Tensor | None:
        return None if offset is None else self._shaped(offset, x, self.channel_axis)

    @staticmethod
    def _shaped(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
        shape = [1] * x.dim()
        shape[axis] = -1
        return parameter.view(shape)

    def fit(self, samples: Samples, find_range: RangeFinder) -> None:
        """Initialise from statistics: the least squared error among LSQ's first guess and steps up to the full range.

        All token positions start alike: a map is cut into windows anywhere, so that its statistics do not depend on
        the position. With offsets, an unsigned grid may start at the lowest value instead of at zero.
        """
        values = samples.values
        # a guess, then clipping from the whole reach inwards
        candidates = [(step, torch.zeros_like(step)) for step in self._steps(samples, values)]
        if self.before is not None and self.unsigned:
            lowest = samples.low
            candidates += [(step, -lowest) for step in self._steps(samples, values - lowest[:, None])]
        errors = torch.stack([samples.squared_error(self._snapped(values, step, shift)) for step, shift in candidates])
        best = errors.argmin(dim=0, keepdim=True)
        step = torch.stack([step for step, _ in candidates]).gather(0, best)[0]
        shift = torch.stack([shift for _, shift in candidates]).gather(0, best)[0]
        self.initialise(step.view(self.shape), shift)

    @torch.no_grad()
    def initialise(self, step: Tensor, shift: Tensor) -> None:
        """Set all steps, and the offsets to +-``shift``; become calibrated."""
        self.step.copy_(step.to(self.step).expand_as(self.step))
        if self.before is not None and self.after is not None:
            self.before.copy_(shift.to(self.before).expand_as(self.before))
            self.after.copy_(-shift.to(self.after).expand_as(self.after))
        self.mark_calibrated()

    def _steps(self, samples: Samples, values: Tensor) -> list[Tensor]:
        """Candidates for the step of each row, (rows,) each."""
        count = samples.counts.sum(1).clamp(min=1)
        mean = (values.double().abs() * samples.counts).sum(1) / count
        guess = (4 if self.unsigned else 2) * mean / math.sqrt(self.highest)
        reach = values.amax(1) if self.unsigned else torch.maximum(values.amax(1), -values.amin(1))
        reach = reach.double().clamp(min=0) / self.highest
        steps = [guess, *(reach * share / SEARCH_STEPS for share in range(1, SEARCH_STEPS + 1))]
        return [step.float().clamp(min=MIN_STEP) for step in steps]

    def _snapped(self, values: Tensor, step: Tensor, shift: Tensor) -> Tensor:
        step, shift = step.view(-1, 1), shift.view(-1, 1)
        return ((values + shift) / step).clamp(self.lowest, self.highest).round() * step - shift

    @torch.no_grad()
    def values_of(self, samples: Samples) -> Tensor:
        """With the mean step and the mean offset where samples know no positions and channels."""

        def known(parameter: Tensor) -> Tensor:
            return parameter.view(-1) if self.axis is not None else parameter.mean().view(1)

        step = known(self.step.detach().float().clamp(min=MIN_STEP))
        shift = step.new_zeros(1) if self.before is None else known(self.before.detach().float())
        return self._snapped(samples.values, step.to(samples.values), shift.to(samples.values))

    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        return self._snapped(samples.values, *self._from_range(low, high))

    def _set_range(self, low: Tensor, high: Tensor) -> None:
        step, _ = self._from_range(low, high)
        self.initialise(step, torch.zeros((), device=step.device))

    def _from_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        reach = high if self.unsigned else torch.maximum(high, -low)
        return (reach / self.highest).clamp(min=MIN_STEP), torch.zeros_like(reach)

    @torch.no_grad()
    def boundary_distance(self, x: Tensor) -> Tensor | None:
        if not self.of_weight:
            return None
        step = along(self.step, x, self.axis).clamp(min=MIN_STEP)
        return distance_to_boundary(x / step, self.lowest, self.highest)

    def describe(self) -> str:
        steps = self.step.detach()
        return f'step {float(steps.mean()):.4g}, codes {self.lowest} to {self.highest}'
