"""Fake quantization with a learned step and two offsets, as one operation with a gradient of our own.

LSQ (arXiv 1902.08153) with the two offsets of OFQ (arXiv 2302.02210): x^ = s round(clip((x + b1) / s, Qn, Qp)) + b2.
With u = (x + b1) / s and I = [Qn <= u <= Qp]: dx^/dx = dx^/db1 = I, dx^/db2 = 1, dx^/ds = round(clip(u)) - u I.

Only the input is kept for the backward, of a linear layer behind it, too: that quantizes its input again instead of
keeping it twice. On a CPU the work is done a cacheful of entries at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK_VALUES = 2**17
MIN_STEP = 1e-5


class Part(NamedTuple):
    """Entries ``start:stop`` of dimension 0, quantized with parameters of their own.

    Attributes:
        start: first entry.
        stop: behind the last entry.
        lowest: Qn, the lowest code.
        highest: Qp, the highest code.
        gradient_scale: what the gradient of the step is multiplied by.
    """

    start: int
    stop: int
    lowest: int
    highest: int
    gradient_scale: float


class Parameters(NamedTuple):
    """Step and offsets of a part, shaped so that they broadcast against its entries; offsets may be None."""

    step: Tensor
    before: Tensor | None
    after: Tensor | None


def learned_fake_quantize(
    x: Tensor, parts: Sequence[Part], parameters: Sequence[Parameters], out: Tensor | None = None
) -> Tensor:
    """Quantize each part of ``x`` with its own step and offsets; together the parts are all of ``x``, in order.

    Args:
        x: (entries, ...), floating point; computed in float32 (float64 for float64), returned in its dtype.
        parts: what shares parameters.
        parameters: one for each part.
        out: where to write, same shape as ``x``; only without gradients.
    """
    if torch.is_grad_enabled() and out is None:
        return _LearnedGrid.apply(x, tuple(parts), *[tensor for group in parameters for tensor in group])
    return _values(x, parts, parameters, torch.empty_like(x) if out is None else out)


def learned_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, parts: Sequence[Part], parameters: Sequence[Parameters]
) -> Tensor:
    """``F.linear(learned_fake_quantize(x, parts, parameters), weight, bias)``; the backward keeps ``x`` alone.

    Args:
        x: (entries, .., C), of the same type as the weight.
        weight: (D, C), as the product shall use it.
        bias: (D,).
        parts: as in :func:`learned_fake_quantize`.
        parameters: likewise.
    """
    return _LearnedLinear.apply(x, weight, bias, tuple(parts), *[tensor for group in parameters for tensor in group])


def _values(x: Tensor, parts: Sequence[Part], parameters: Sequence[Parameters], out: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        values = [
            _part_values(x[part.start : part.stop], part, group) for part, group in zip(parts, parameters, strict=True)
        ]
        return values[0] if len(values) == 1 else torch.cat(values)
    for part, (step, before, after) in zip(parts, parameters, strict=True):
        for start, stop in _chunks(x, part):
            own = _own_rows(step, x, start - part.start, stop - part.start).clamp(min=MIN_STEP)
            target = out[start:stop]
            direct = target.dtype == own.dtype
            codes = _scaled(x[start:stop], own, before, target if direct else None)
            codes.clamp_(part.lowest, part.highest).round_().mul_(own)
            if after is not None:
                codes.add_(after)
            if not direct:
                target.copy_(codes)
    return out


def _part_values(x: Tensor, part: Part, parameters: Parameters) -> Tensor:
    """A part's entries, quantized by operations that compilers follow: nothing is written in place."""
    step, before, after = parameters
    step = step.clamp(min=MIN_STEP)
    values = _scaled(x, step, before).clamp(part.lowest, part.highest).round() * step
    return (values if after is None else values + after).to(x.dtype)


def _scaled(x: Tensor, step: Tensor, before: Tensor | None, out: Tensor | None = None) -> Tensor:
    """(x + b1) / s in the step's dtype."""
    if before is None:
        return torch.div(x, step, out=out) if x.dtype == step.dtype else x.to(step.dtype).div_(step)
    x = x.to(step.dtype)
    return torch.add(x, before, out=out).div_(step)


def _own_rows(parameter: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
    """What of a parameter belongs to entries start:stop: all of it, unless it has a value for each entry."""
    per_entry = parameter.dim() == x.dim() and parameter.shape[0] != 1
    return parameter[start:stop] if per_entry else parameter


def _chunks(x: Tensor, part: Part) -> Iterator[tuple[int, int]]:
    count = part.stop - part.start
    per_entry = max(x.numel() // max(x.shape[0], 1), 1) if x.dim() else 1
    size = max(CHUNK_VALUES // per_entry, 1) if x.device.type == 'cpu' else max(count, 1)
    for start in range(part.start, part.stop, size):
        yield start, min(start + size, part.stop)


class _LearnedGrid(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: tuple[Part, ...], *tensors: Tensor | None) -> Tensor:
        ctx.parts = parts
        ctx.save_for_backward(x, *tensors)
        return _values(x, parts, _grouped(tensors), torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        grad_x, grads = _gradients(x, grad, ctx.parts, tensors, ctx.needs_input_grad[0])
        return grad_x, None, *grads


class _LearnedLinear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: tuple[Part, ...], *tensors: Tensor | None
    ) -> Tensor:
        ctx.parts = parts
        ctx.save_for_backward(x, weight, *tensors)
        return F.linear(_values(x, parts, _grouped(tensors), torch.empty_like(x)), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *tensors = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            again = _values(x, ctx.parts, _grouped(tensors), torch.empty_like(x))
            grad_weight = rows.t() @ again.view(-1, x.shape[-1])
            del again
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        to_input = (rows @ weight).view(x.shape)
        grad_x, grads = _gradients(x, to_input, ctx.parts, tensors, ctx.needs_input_grad[0])
        return grad_x, grad_weight, grad_bias, None, *grads


def _gradients(
    x: Tensor, grad: Tensor, parts: tuple[Part, ...], tensors: Sequence[Tensor | None], for_x: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradient of the input, if wanted, and of every part's step and offsets; ``grad`` is that of the output."""
    grad_x = torch.empty_like(grad, dtype=x.dtype) if for_x else None
    grads: list[Tensor | None] = []
    for part, parameters in zip(parts, _grouped(tensors), strict=True):
        grads += _part_gradients(x, grad, grad_x, part, parameters)
    return grad_x, grads


def _part_gradients(
    x: Tensor, grad: Tensor, grad_x: Tensor | None, part: Part, parameters: Parameters
) -> list[Tensor | None]:
    """Gradients of a part's step and offsets; writes that of its entries into ``grad_x``."""
    step, before, after = parameters
    grad_step = torch.zeros_like(step)
    grad_before, grad_after = (None if tensor is None else torch.zeros_like(tensor) for tensor in (before, after))
    for start, stop in _chunks(x, part):
        rows = start - part.start, stop - part.start
        own = _own_rows(step, x, *rows).clamp(min=MIN_STEP)
        upstream = grad[start:stop].to(own.dtype)
        scaled = _scaled(x[start:stop], own, before)
        clipped = scaled.clamp(part.lowest, part.highest)
        inside = torch.eq(scaled, clipped).to(own.dtype)  # numbers multiply faster than booleans
        target = None if grad_x is None else grad_x[start:stop]
        direct = target is not None and target.dtype == own.dtype
        to_input = torch.mul(upstream, inside, out=target if direct else None)
        if target is not None and not direct:
            target.copy_(to_input)
        if before is not None and grad_before is not None:
            grad_before += to_input.sum_to_size(before.shape)
        if after is not None and grad_after is not None:
            grad_after += upstream.sum_to_size(after.shape)
        # inside: g round(u) - g u; outside: g times the clipped code
        change = torch.round(clipped, out=scaled).mul_(upstream).addcmul_(clipped, to_input, value=-1)
        _own_rows(grad_step, x, *rows).add_(change.sum_to_size(own.shape), alpha=part.gradient_scale)
    return [grad_step, grad_before, grad_after]


def _grouped(tensors: Sequence[Any]) -> list[Parameters]:
    return [Parameters(*tensors[start : start + 3]) for start in range(0, len(tensors), 3)]


def reference_learned_fake_quantize(
    x: Tensor, step: float, before: float, after: float, lowest: int, highest: int
) -> Tensor:
    """Slow statement of the formula for one step and one pair of offsets: a loop over Python numbers."""
    values = []
    for value in x.detach().double().flatten().tolist():
        code = float(np.rint(min(max((value + before) / step, lowest), highest)))
        values.append(step * code + after)
    return torch.tensor(values, dtype=torch.float64).view(x.shape)
