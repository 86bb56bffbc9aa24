"""A Swin block on integers in plain torch: what runs where the kernels cannot, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.models.window_attention import merge_heads, split_heads
from mixaq_mmdet.windows.assignment import Place, Run

from .layouts import BlockWeights, BranchGrids, Grid
from .products import ExactLinear, probability_values, step_of, steps_of
from .state import BLOCK_LAYERS
from .tensor_checks import checked_in_place


class BlockLinear(Protocol):
    """A layer of a block, such as ``ExactLinear``."""

    def __call__(self, steps: Tensor, grid: Grid, positions: Tensor | None = None, branch: int = 0) -> Tensor:
        """Map whole numbers (..., K), multiples of the grid's step, to float32 (..., N)."""


class TorchBlock:
    """The same interface as ``kernels.IntegerBlock``.

    Args:
        weights: the block.
        linear: its layers are made by.
    """

    def __init__(self, weights: BlockWeights, linear: Callable[..., BlockLinear] = ExactLinear) -> None:
        self.weights = weights
        self.tokens = weights.bias.shape[-1]
        inputs = {name: [getattr(grids, f'{name}_in') for grids in weights.grids] for name in BLOCK_LAYERS}
        self.layers = {name: linear(getattr(weights, name), grids) for name, grids in inputs.items()}

    def run(self, stream: Tensor, run: Run) -> None:
        """Work on the windows of ``run``, in place.

        Args:
            stream: (B * H * W, C) float32 residual stream.
            run: which rows of it, in which branch.
        """
        checked_in_place(stream, 'stream', ('rows', self.weights.proj.codes.shape[0]))
        tokens = stream.index_select(0, run.rows)
        tokens += self._attend(tokens, run)
        tokens += self._feed_forward(tokens, run)
        stream.index_copy_(0, run.rows, tokens)

    def _attend(self, tokens: Tensor, run: Run) -> Tensor:
        qkv = self._normalised(tokens, run, 'qkv', self.weights.norm1)
        if run.slots is not None:
            assert self.weights.pad_qkv is not None
            spread = self.weights.pad_qkv.repeat(run.windows * self.tokens, 1)
            qkv = spread.index_copy_(0, run.slots, qkv)
        qkv = qkv.view(run.windows, self.tokens, -1)
        attended = torch.empty((run.windows, self.tokens, tokens.shape[1]))
        for start, stop, kind in run.segments:
            for first, last, branch in _parts(run.high_windows, start, stop):
                grids, bias = self.weights.grids[branch], self.weights.bias[kind]
                attended[first:last] = self._attend_windows(qkv[first:last], bias, grids)
        attended = attended.flatten(0, 1)
        attended = attended if run.slots is None else attended[run.slots]
        return self._by_branch(attended, run, 'proj')

    def _attend_windows(self, qkv: Tensor, bias: Tensor, grids: BranchGrids) -> Tensor:
        """(windows, tokens, 3 * C) to (windows, tokens, C)."""
        q, k, v = split_heads(qkv, self.weights.num_heads)
        q, k, v = steps_of(q * self.weights.scale, grids.q), steps_of(k, grids.k), steps_of(v, grids.v)
        logits = _scaled_logits(q, k, grids).add_(bias)
        attention, step = probability_values(logits.softmax(-1), grids.attn)
        v_step = step_of(grids.v)
        out = attention @ (v * v_step) if grids.v.steps is not None else (attention @ v).mul_(v_step)
        if grids.v.after is not None:
            out.add_(attention.sum(-1, keepdim=True) * grids.v.after)
        return merge_heads(out.mul_(step))

    def _feed_forward(self, tokens: Tensor, run: Run) -> Tensor:
        hidden = F.gelu(self._normalised(tokens, run, 'fc1', self.weights.norm2))
        return self._by_branch(hidden, run, 'fc2')

    def _normalised(self, tokens: Tensor, run: Run, name: str, norm: tuple[Tensor, Tensor]) -> Tensor:
        """The layer ``name`` on each branch's norm of its tokens."""
        parts = []
        for first, last, branch in _parts(run.high_tokens, 0, len(tokens)):
            gamma, beta = norm[0][branch], norm[1][branch]
            x = F.layer_norm(tokens[first:last], tokens.shape[1:], gamma, beta, self.weights.epsilon)
            parts.append(self._quantized(name, x, run, first, branch))
        return torch.cat(parts)

    def _by_branch(self, x: Tensor, run: Run, name: str) -> Tensor:
        parts = _parts(run.high_tokens, 0, len(x))
        return torch.cat([self._quantized(name, x[first:last], run, first, branch) for first, last, branch in parts])

    def _quantized(self, name: str, x: Tensor, run: Run, first: int, branch: int) -> Tensor:
        """The layer on the run's tokens from ``first`` on, (rows, K) to (rows, N)."""
        grid = getattr(self.weights.grids[branch], f'{name}_in')
        positions = None
        if grid.steps is not None:
            slots = torch.arange(first, first + len(x)) if run.slots is None else run.slots[first : first + len(x)]
            positions = slots % self.tokens
        return self.layers[name](steps_of(x, grid, positions), grid, positions, branch)


def _scaled_logits(q: Tensor, k: Tensor, grids: BranchGrids) -> Tensor:
    """Logits of codes (windows, heads, tokens, channels), but for terms that a whole row shares: softmax drops those.

    (s c_q + a_q)(s' c_k + a_k) summed over channels is s s' c_q c_k + s' a_q c_k, and two terms without the key.
    """
    q_step, k_step = step_of(grids.q), step_of(grids.k)
    logits = q @ k.transpose(-2, -1)
    if grids.q.after is not None:
        from_offset = k @ grids.q.after
        logits.mul_(q_step).add_(from_offset.unsqueeze(-2))
        return logits.mul_(k_step.transpose(-2, -1) if isinstance(k_step, Tensor) else k_step)
    if isinstance(q_step, Tensor) or isinstance(k_step, Tensor):
        return logits.mul_(q_step).mul_(k_step.transpose(-2, -1) if isinstance(k_step, Tensor) else k_step)
    return logits.mul_(q_step * k_step)


def _parts(high: Place, start: Place, stop: Place) -> Iterator[tuple[int, int, int]]:
    """The non-empty parts of ``start:stop`` in the high branch (0) and in the low one (1)."""
    start, stop = int(start), int(stop)
    middle = min(max(int(high), start), stop)
    for first, last, branch in ((start, middle, 0), (middle, stop, 1)):
        if first < last:
            yield first, last, branch
