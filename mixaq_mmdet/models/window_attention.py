"""Attention within windows: products, position bias, shift mask and softmax as one operation.

Inference and GPUs use torch's fused kernels. Training on a CPU uses a backward of our own: torch's fused CPU kernel has
none for a learned bias, and the unfused one keeps and moves every attention matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mixaq_mmdet.windows.assignment import Segment

# Attention values that the backward works on at once: a few MB stay in a CPU's cache.
CHUNK_VALUES = 2**19


def attend(
    qkv: Tensor, biases: Tensor, segments: tuple[Segment, ...], num_heads: int, scale: float, dropout: float = 0.0
) -> Tensor:
    """Softmax attention of every window with the bias of its segment.

    Args:
        qkv: (windows, tokens, 3 * C), in each token q of all heads, then k, then v.
        biases: (kinds, heads, tokens, tokens), added to the scaled logits.
        segments: which windows need which of the biases; together all windows, in order.
        num_heads: heads.
        scale: factor of the logits.
        dropout: rate at which attention probabilities are dropped.

    Returns:
        (windows, tokens, C).
    """
    needs_gradient = torch.is_grad_enabled() and (qkv.requires_grad or biases.requires_grad)
    if needs_gradient and qkv.device.type == 'cpu' and not dropout:
        return _RecomputedAttention.apply(qkv, biases, segments, num_heads, scale)
    return _attend_fused(qkv, biases, segments, num_heads, scale, dropout)


def attend_whole(qkv: Tensor, biases: Tensor, num_heads: int, scale: float, dropout: float = 0.0) -> Tensor:
    """As :func:`attend` with a bias (1 or windows, heads, tokens, tokens) for each window, or one for all."""
    q, k, v = split_heads(qkv, num_heads)
    mask = biases.to(q.dtype).expand(len(q), -1, -1, -1)
    return merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale))


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(windows, tokens, 3 * C) to q, k, v, each (windows, heads, tokens, C / heads); no copies."""
    windows, tokens, _ = qkv.shape
    q, k, v = qkv.view(windows, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """(windows, heads, tokens, head channels) to (windows, tokens, C)."""
    return x.transpose(1, 2).flatten(2)


def _attend_fused(
    qkv: Tensor, biases: Tensor, segments: tuple[Segment, ...], num_heads: int, scale: float, dropout: float
) -> Tensor:
    q, k, v = split_heads(qkv, num_heads)
    parts = [
        merge_heads(
            F.scaled_dot_product_attention(
                q[start:stop],
                k[start:stop],
                v[start:stop],
                attn_mask=biases[kind : kind + 1].expand(stop - start, -1, -1, -1),
                dropout_p=dropout,
                scale=scale,
            )
        )
        for start, stop, kind in segments
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _RecomputedAttention(Function):
    """Keeps only q, k and v; the backward computes the attention matrices again, a cacheful of windows at a time."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, biases: Tensor, segments: tuple[Segment, ...], num_heads: int, scale: float
    ) -> Tensor:
        ctx.save_for_backward(qkv, biases)
        ctx.constants = segments, num_heads, scale
        # detached: torch would refuse its fused kernel for tensors that require gradients
        return _attend_fused(qkv.detach(), biases.detach(), segments, num_heads, scale, dropout=0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        qkv, biases = ctx.saved_tensors
        segments, num_heads, scale = ctx.constants
        tokens = grad.shape[1]
        exact = torch.promote_types(qkv.dtype, torch.float32)
        grad_qkv = torch.empty_like(qkv)
        grad_biases = torch.zeros(biases.shape, dtype=exact)
        for start, stop, kind in _chunks(segments, CHUNK_VALUES // (num_heads * tokens**2)):
            windows = stop - start
            split = qkv[start:stop].view(windows, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = split.to(exact, copy=True).contiguous().flatten(1, 2)
            upstream = grad[start:stop].view(windows, tokens, num_heads, -1).transpose(1, 2)
            upstream = upstream.to(exact).reshape(windows * num_heads, tokens, -1)

            logits = torch.bmm(q, k.transpose(1, 2)).view(windows, num_heads, tokens, tokens)
            torch.add(biases[kind], logits, alpha=scale, out=logits)
            attention = logits.softmax(-1).view(windows * num_heads, tokens, tokens)
            grad_attention = torch.bmm(upstream, v.transpose(1, 2))
            grad_logits = torch._softmax_backward_data(grad_attention, attention, -1, exact)
            grad_biases[kind] += grad_logits.view(windows, num_heads, tokens, tokens).sum(0)
            grads = torch.stack(
                (
                    torch.bmm(grad_logits, k).mul_(scale),
                    torch.bmm(grad_logits.transpose(1, 2), q).mul_(scale),
                    torch.bmm(attention.transpose(1, 2), upstream),
                )
            )
            by_token = grads.view(3, windows, num_heads, tokens, -1).permute(1, 3, 0, 2, 4)
            grad_qkv[start:stop].view(by_token.shape).copy_(by_token)
        return grad_qkv, grad_biases.to(biases.dtype), None, None, None


def _chunks(segments: tuple[Segment, ...], windows: int) -> Iterator[Segment]:
    step = max(windows, 1)
    for start, stop, kind in segments:
        for first in range(start, stop, step):
            yield Segment(first, min(first + step, stop), kind)
