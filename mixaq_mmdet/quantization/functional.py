"""Pure quantization math: codes, values, and their composition with a straight-through gradient.

Uniform affine: n = 2^b - 1, s = (max - min) / n, z = round(-min / s), x^ = (clip(round(x / s) + z, 0, n) - z) s.
Logarithmic with k steps per octave (k = 1: log2, k = 2: log-sqrt2 of RepQ-ViT, arXiv 2212.08254, section 3.3):
q = round(-k log2(x / D)), x^ = 0 if q >= 2^b else D 2^(-q / k); exact zeros stay zero.

Everything is computed in float32 (float64 for float64 input), also under autocast, and returned in the input's dtype.
Parameters are 0-d tensors, or 1-d tensors along ``axis`` of the input. ``reference_*`` are slow loops over Python
numbers that state the same formulas independently; tests compare with them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8


def check_bits(bits: Any, field: str) -> int:
    """Return ``bits`` as an int; anything but a whole number from 2 to 8 is a ValueError that names ``field``."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f'{field}={bits!r} is not supported; use a whole number of bits from {MIN_BITS} to {MAX_BITS}')
    return bits


def distance_to_boundary(steps: Tensor, lowest: int, highest: int) -> Tensor:
    """How far values, in steps of a grid, are from where their code changes, (...) to (...).

    Codes change halfway between two of ``lowest`` to ``highest``; beyond these a value only moves away.
    """
    boundary = (steps - 0.5).round().clamp(lowest, highest - 1) + 0.5
    return (steps - boundary).abs()


def along(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """View a 1-d ``parameter`` so that it broadcasts along ``axis`` of ``x``; 0-d parameters pass."""
    if axis is None or parameter.dim() == 0:
        return parameter
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.view(shape)


def affine_parameters(
    low: Tensor, high: Tensor, bits: int, symmetric: bool = False, include_zero: bool = True
) -> tuple[Tensor, Tensor]:
    """Scale and zero point (whole numbers in float32) for the range [low, high], elementwise.

    Args:
        low: lower ends, any shape.
        high: upper ends, same shape.
        bits: code width.
        symmetric: centre the range on zero; the zero point is 2^(b-1) and both ends +-max|x| are codes.
        include_zero: widen the range to hold 0, so that zeros stay zero. A range of one point is widened anyway.
    """
    levels = 2**bits - 1
    low, high = low.float(), high.float()
    if symmetric:
        reach = torch.maximum(low.abs(), high.abs())
        scale = reach / (2 ** (bits - 1) - 1)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return scale, torch.full_like(scale, 2 ** (bits - 1))
    widen = torch.full_like(low, include_zero, dtype=torch.bool) | (high - low <= 0)
    low = torch.where(widen, low.clamp(max=0), low)
    high = torch.where(widen, high.clamp(min=0), high)
    scale = (high - low) / levels
    # a scale below the normal numbers would overflow x / s
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    return scale, torch.round(-low / scale)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, axis: int | None = None) -> Tensor:
    """Codes 0 .. 2^b - 1 as int32, same shape as ``x``."""
    x = _wide(x)
    codes = torch.round(x / along(scale, x, axis)) + along(zero_point, x, axis)
    return codes.clamp_(0, 2**bits - 1).to(torch.int32)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """Values of integer ``codes``, float32."""
    return (codes.float() - along(zero_point, codes, axis)) * along(scale, codes, axis)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, bits: int, axis: int | None = None, out: Tensor | None = None
) -> Tensor:
    """``dequantize(quantize(x))`` with gradient 1 inside the clip range and 0 outside.

    Args:
        x: any shape, floating point.
        scale: step size, 0-d or (x.shape[axis],).
        zero_point: same shape as ``scale``, whole numbers in float.
        bits: code width.
        axis: the axis that ``scale`` runs along.
        out: where to write, same shape and dtype as ``x``; only without gradients.
    """
    scale, zero_point = along(scale, x, axis), along(zero_point, x, axis)
    if torch.is_grad_enabled() and x.requires_grad:
        return _StraightThrough.apply(x, scale, zero_point, 2**bits - 1)
    values = _snap(x, scale, -zero_point, 2**bits - 1 - zero_point, out)
    return _deliver(values, x, out)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, levels: int) -> Tensor:
        steps = torch.div(_wide(x), scale).round_()
        low, high = -zero_point, levels - zero_point
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return _clip_(steps, low, high).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None


def _snap(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, out: Tensor | None) -> Tensor:
    wide = _wide(x)
    target = out if out is not None and out.dtype == wide.dtype else None
    return _clip_(torch.div(wide, scale, out=target).round_(), low, high).mul_(scale)


def _clip_(steps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    # numbers clip faster than tensors, but reading them waits for an accelerator
    if low.dim() == 0 and low.device.type == 'cpu' and not torch.compiler.is_compiling():
        return steps.clamp_(low.item(), high.item())
    return steps.clamp_(low, high)


def log_quantize(x: Tensor, scale: Tensor, bits: int, steps_per_octave: int) -> Tensor:
    """Codes 0 .. 2^b as int32 for ``x`` >= 0; the code 2^b means zero.

    Args:
        x: any shape, values at least 0.
        scale: 0-d, the value of code 0; larger values clip to it.
        bits: code width.
        steps_per_octave: 1 for log2, 2 for log-sqrt2.
    """
    codes = torch.div(_wide(x), scale).log2_().mul_(-steps_per_octave).round_()
    return codes.clamp_(0, 2**bits).to(torch.int32)


def log_dequantize(codes: Tensor, scale: Tensor, bits: int, steps_per_octave: int) -> Tensor:
    """Values of logarithmic ``codes``, float32."""
    values = torch.exp2(codes.float() / -steps_per_octave) * scale
    return values.masked_fill_(codes >= 2**bits, 0)


def fake_log_quantize(x: Tensor, scale: Tensor, bits: int, steps_per_octave: int, out: Tensor | None = None) -> Tensor:
    """``log_dequantize(log_quantize(x))`` with gradient 1 where the result is neither clipped nor zero."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _LogStraightThrough.apply(x, scale, bits, steps_per_octave)
    return _deliver(_log_snap(x, scale, bits, steps_per_octave, out)[0], x, out)


class _LogStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bits: int, steps_per_octave: int) -> Tensor:
        values, zero = _log_snap(x, scale, bits, steps_per_octave, None)
        ctx.save_for_backward(~zero & (_wide(x) <= scale))
        return values.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None


def _log_snap(x: Tensor, scale: Tensor, bits: int, steps_per_octave: int, out: Tensor | None) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    target = out if out is not None and out.dtype == wide.dtype else None
    exponent = torch.div(wide, scale, out=target).log2_().mul_(steps_per_octave).round_().clamp_(max=0)
    zero = exponent <= -(2**bits)
    return exponent.mul_(1 / steps_per_octave).exp2_().mul_(scale).masked_fill_(zero, 0), zero


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _deliver(values: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return values.to(x.dtype)
    return out if values.data_ptr() == out.data_ptr() else out.copy_(values)


def reference_fake_quantize(x: Tensor, scale: float, zero_point: int, bits: int) -> Tensor:
    """Slow statement of :func:`fake_quantize` for one scale: a loop over float32 scalars."""
    step = np.float32(scale)
    values = []
    for value in x.detach().float().flatten().numpy():
        code = np.clip(np.rint(value / step) + zero_point, 0, 2**bits - 1)  # infinite where the step is subnormal
        values.append((code - zero_point) * step)
    return torch.tensor(np.array(values, dtype=np.float32)).view(x.shape)


def reference_fake_log_quantize(x: Tensor, scale: float, bits: int, steps_per_octave: int) -> Tensor:
    """Slow statement of :func:`fake_log_quantize`, for log-sqrt2 in the paper's form with its parity factor."""
    values = []
    for value in x.detach().double().flatten().tolist():
        code = 2**bits if value <= 0 else max(round(-steps_per_octave * math.log2(value / scale)), 0)
        if code >= 2**bits:
            values.append(0.0)
        elif steps_per_octave == 2:
            parity = math.sqrt(2) if code % 2 else 1.0
            values.append(scale * 2.0 ** -math.ceil(code / 2) * parity)
        else:
            values.append(scale * 2.0 ** (-code / steps_per_octave))
    return torch.tensor(values, dtype=torch.float32).view(x.shape)
