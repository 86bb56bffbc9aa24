"""A look into a running block: the codes that its products read, for comparison with the simulated model's."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from mixaq_mmdet.windows.assignment import Run

from .block import IntegerBlock
from .structures import Trace

_KEYS = 160  # kMaxTokens in attention.h: columns of a query's probabilities
_CODES = ('qkv_in', 'qkv', 'proj_in', 'fc1_in', 'fc2_in')


def trace_block(block: IntegerBlock, stream: Tensor, run: Run, threads: int | None = None) -> dict[str, Tensor]:
    """Run a block in place, as ``block.run`` does, and return what it made on the way.

    Args:
        block: the block.
        stream: (B * H * W, C) float32.
        run: kept windows, T real tokens.
        threads: threads; torch's number if not given.

    Returns:
        Codes, uint8: ``qkv_in``, ``proj_in``, ``fc1_in`` (T, C), ``fc2_in`` (T, hidden), ``q``, ``k``, ``v``
        (windows, tokens, C). ``attn`` (windows, heads, tokens, tokens) bfloat16: what values are weighed with, see
        ``learned.weight_unit``; rows of padding tokens are 0.
    """
    rows, channels, hidden = len(run.rows), block.channels, block.hidden
    slots = run.windows * block.tokens
    codes = {
        'qkv_in': torch.zeros(rows, channels, dtype=torch.uint8),
        'qkv': torch.zeros(slots, 3 * channels, dtype=torch.uint8),
        'proj_in': torch.zeros(rows, channels, dtype=torch.uint8),
        'fc1_in': torch.zeros(rows, channels, dtype=torch.uint8),
        'fc2_in': torch.zeros(rows, hidden, dtype=torch.uint8),
    }
    attn = torch.zeros(run.windows, block.heads, block.tokens, _KEYS, dtype=torch.bfloat16)
    trace = Trace(*(codes[name].data_ptr() for name in _CODES), attn.data_ptr())
    block.run(stream, run, threads, ctypes.addressof(trace))
    q, k, v = codes.pop('qkv').view(run.windows, block.tokens, 3, channels).unbind(2)
    return {**codes, 'q': q, 'k': k, 'v': v, 'attn': attn[..., : block.tokens]}
