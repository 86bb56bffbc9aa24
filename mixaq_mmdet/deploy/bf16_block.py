"""The bf16 tier: high windows in bfloat16 with dequantized weights and activations that are not quantized at all."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.models.window_attention import attend
from mixaq_mmdet.windows.assignment import Run, cut_run

from .layouts import BlockWeights, LinearWeights
from .state import BLOCK_LAYERS

CHUNK_VALUES = 2**20  # hidden values of the windows worked on at once: they stay in the cache


class Bf16Block:
    """The high branch of a block in bfloat16; the residual stream stays float32.

    It computes what the simulated model would with its high activation quantizers switched off.
    """

    def __init__(self, weights: BlockWeights) -> None:
        self.weights = weights
        self.tokens = weights.bias.shape[-1]
        self.layers = {name: dequantized(getattr(weights, name)) for name in BLOCK_LAYERS}
        self.bias = weights.bias.bfloat16()
        hidden = weights.fc1.codes.shape[0]
        self.windows = max(CHUNK_VALUES // (hidden * self.tokens), 1)

    def run(self, stream: Tensor, run: Run) -> None:
        """Work on the windows of ``run``, all of them high, in place."""
        for part in cut_run(run, [*range(0, run.windows, self.windows), run.windows], self.tokens):
            tokens = stream[part.rows]
            tokens += self._attend(self._normed(tokens, self.weights.norm1), part)
            tokens += self._product('fc2', F.gelu(self._product('fc1', self._normed(tokens, self.weights.norm2))))
            stream.index_copy_(0, part.rows, tokens)

    def _normed(self, tokens: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[1:], norm[0][0], norm[1][0], self.weights.epsilon).bfloat16()

    def _product(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self.layers[name])

    def _attend(self, x: Tensor, run: Run) -> Tensor:
        qkv = self._product('qkv', x)
        if run.slots is not None:
            assert self.weights.pad_qkv is not None
            spread = self.weights.pad_qkv.bfloat16().repeat(run.windows * self.tokens, 1)
            qkv = spread.index_copy_(0, run.slots, qkv)
        qkv = qkv.view(run.windows, self.tokens, -1)
        heads, scale = self.weights.num_heads, self.weights.scale
        attended = attend(qkv, self.bias, run.segments, heads, scale).flatten(0, 1)
        return self._product('proj', attended if run.slots is None else attended[run.slots])


class TwoEngineBlock:
    """High windows by one engine, low ones by another.

    Args:
        high: runs blocks whose windows are all high.
        low: runs any.
        tokens: of a window.
    """

    def __init__(self, high: Any, low: Any, tokens: int) -> None:
        self.high, self.low, self.tokens = high, low, tokens

    def run(self, stream: Tensor, run: Run) -> None:
        """Work on the windows of ``run``, in place."""
        high, low = cut_run(run, (0, run.high_windows, run.windows), self.tokens)
        if high.windows:
            self.high.run(stream, high)
        if low.windows:
            self.low.run(stream, low)


def dequantized(layer: LinearWeights) -> tuple[Tensor, Tensor]:
    """Weight and bias in bfloat16."""
    steps = layer.codes.float() - layer.zero_point.unsqueeze(1)
    return (steps * layer.scale.unsqueeze(1)).bfloat16(), layer.bias.bfloat16()
