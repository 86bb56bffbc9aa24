"""Logarithmic grids of an adaptive base (AdaLog, ECCV 2024): math without modules.

With R = 37 and a whole number q the base is 2^(q / R): k = round(-R / q log2(x / s)), x^ = 0 if k >= 2^b, else
x^ = s 2^-floor(k q / R) T[k]. T[k] is 2^(-((k q) mod R) / R) rounded to one of 2^(b+1) - 2 equal steps, so that a
product with a value needs a small integer and a shift.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

RESOLUTION = 37
AT_ONCE = 1 << 21  # values quantized at once in a search
BASES = range(10, 138)
GELU_MINIMUM = 0.16997124254703522
"""How far GELU goes below zero: added in front of the grid of its results."""


@lru_cache(maxsize=1024)
def adaptive_levels(base: int, bits: int) -> Tensor:
    """(2^b + 1,) float32: the value of every code for s = 1; the last one is zero. To be read only."""
    steps = 2 ** (bits + 1) - 2
    exponents = [code * base for code in range(2**bits)]
    table = [round(2 ** (-(e % RESOLUTION) / RESOLUTION) * steps) / steps for e in exponents]
    levels = [t * 2.0 ** -(e // RESOLUTION) for e, t in zip(exponents, table, strict=True)]
    return torch.tensor([*levels, 0.0])


def adaptive_codes(x: Tensor, scale: Tensor, base: Tensor | float, bits: int) -> Tensor:
    """Codes 0 .. 2^b as int32 of ``x``; what is not above zero has the last one. ``scale`` and ``base`` broadcast."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    octaves = torch.div(wide, scale).clamp_(min=0).log2_()
    return octaves.mul(-RESOLUTION / base).round_().clamp_(0, 2**bits).to(torch.int32)


def fake_adaptive_quantize(x: Tensor, scale: Tensor, base: Tensor, levels: Tensor, bits: int) -> Tensor:
    """``x`` on the grid, in its dtype, with gradient 1 where the result is neither clipped nor zero."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _StraightThrough.apply(x, scale, base, levels, bits)
    return _values(x, scale, base, levels, bits)[0]


def best_bases(values: Tensor, counts: Tensor, scale: Tensor, bits: int) -> Tensor:
    """(rows,) int64: of all bases that of least squared error for ``values`` (rows, K) with ``scale`` (rows,)."""
    bases = torch.tensor(BASES)[:, None].expand(-1, len(values))
    errors = adaptive_errors(values, counts, scale.expand(len(bases), -1), bases, bits)
    return errors.argmin(0) + BASES.start


def adaptive_errors(values: Tensor, counts: Tensor, scales: Tensor, bases: Tensor, bits: int) -> Tensor:
    """(candidates, rows) squared errors, weighted by ``counts``.

    Args:
        values: (rows, K), at least 0.
        counts: (rows, K).
        scales: (candidates, rows).
        bases: (candidates, rows).
        bits: code width.
    """
    table = torch.stack([adaptive_levels(base, bits) for base in BASES])
    most, found = max(AT_ONCE // values.numel(), 1), []
    for scale, base in zip(scales.split(most), bases.split(most), strict=True):
        codes = adaptive_codes(values, scale.unsqueeze(-1), base.unsqueeze(-1), bits)
        simulated = table[(base - BASES.start).unsqueeze(-1), codes.long()] * scale.unsqueeze(-1)
        found.append(((simulated.double() - values.double()).square() * counts).sum(-1))
    return torch.cat(found)


def reference_fake_adaptive_quantize(x: Tensor, scale: float, base: int, bits: int) -> Tensor:
    """Slow statement of :func:`fake_adaptive_quantize`: a loop over Python numbers, by shifts and whole numbers."""
    steps, values = 2 ** (bits + 1) - 2, []
    for value in x.detach().double().flatten().tolist():
        code = 2**bits if value <= 0 else max(round(-RESOLUTION / base * math.log2(value / scale)), 0)
        whole, rest = divmod(code * base, RESOLUTION)
        number = round(2 ** (-rest / RESOLUTION) * steps)
        values.append(0.0 if code >= 2**bits else scale * number / steps / 2**whole)
    return torch.tensor(values, dtype=torch.float32).view(x.shape)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, base: Tensor, levels: Tensor, bits: int) -> Tensor:
        values, zero = _values(x, scale, base, levels, bits)
        ctx.save_for_backward(~zero & (x <= scale))
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None, None


def _values(x: Tensor, scale: Tensor, base: Tensor, levels: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    codes = adaptive_codes(x, scale, base, bits)
    values = levels.index_select(0, codes.flatten()).view(codes.shape).mul_(scale)
    return values.to(x.dtype), codes == 2**bits
