"""Moving rows between the residual stream and window order, with gradients that move the same way back.

Rows are never taken twice, so a gradient is a plain copy; torch's own index_select would add it up row by row.
A tracer (get_flops) cannot follow functions of our own and needs no gradients: it is shown torch's operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class _Take(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return spread_rows(grad, index, ctx.num_rows), None


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(index)
        shape = (num_rows, *x.shape[1:])
        out = x.new_empty(shape) if index.numel() == num_rows else x.new_zeros(shape)
        return out.index_copy_(0, index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return take_rows(grad, index), None, None


class _Replace(Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, index: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return base.index_copy(0, index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (index,) = ctx.saved_tensors
        return grad.index_fill(0, index, 0), None, take_rows(grad, index)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x`` in the order of ``index``.

    Args:
        x: (rows, ...).
        index: (taken,) int64, no row twice.

    Returns:
        (taken, ...).
    """
    return x.index_select(0, index) if torch.jit.is_tracing() else _Take.apply(x, index)


def spread_rows(x: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """The transpose of :func:`take_rows`: row i of ``x`` becomes row ``index[i]``, other rows are zero.

    Args:
        x: (taken, ...).
        index: (taken,) int64, no row twice.
        num_rows: rows of the result.

    Returns:
        (num_rows, ...).
    """
    if torch.jit.is_tracing():
        return x.new_zeros((num_rows, *x.shape[1:])).index_copy(0, index, x)
    return _Spread.apply(x, index, num_rows)


def replace_rows(base: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """``base`` with row ``index[i]`` replaced by row i of ``x``; all other rows pass untouched.

    Args:
        base: (rows, ...).
        index: (taken,) int64, no row twice.
        x: (taken, ...).

    Returns:
        (rows, ...).
    """
    if torch.jit.is_tracing():
        return base.index_copy(0, index, x)
    return spread_rows(x, index, base.shape[0]) if index.numel() == base.shape[0] else _Replace.apply(base, index, x)


class _ZeroGradients(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def with_zero_gradients(x: Tensor, unused: list[Tensor]) -> Tensor:
    """``x``, on which ``unused`` parameters now depend with a gradient of zero.

    A branch without windows would leave its parameters without a gradient; DistributedDataParallel then waits forever.
    """
    needed = unused and torch.is_grad_enabled() and not torch.jit.is_tracing()
    return _ZeroGradients.apply(x, *unused) if needed else x
