"""Window attention over windows of both branches at once."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.backbones.swin import WindowMSA
from torch import Tensor, nn

from mixaq_mmdet.quantization import BranchAware, ProductAttention, Split
from mixaq_mmdet.windows.assignment import Segment
from mixaq_mmdet.windows.geometry import kind_regions, shift_mask

from .fast_layers import FastLinear
from .static_form import cached_constants
from .window_attention import attend, attend_whole, merge_heads, split_heads

MASKED = -100.0  # as in stock Swin: what another region's logits are lowered by


def call_layer(layer: nn.Module, x: Tensor, split: Split) -> Any:
    """Call a layer of a block; one that is :class:`BranchAware` is told which entries belong to which branch."""
    return layer(x, split) if isinstance(layer, BranchAware) else layer(x)


@cached_constants(16)
def kind_masks(window: int, shift: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What is added to the logits of each kind of window, (kinds, tokens, tokens)."""
    apart = shift_mask(kind_regions(window, shift, device))
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill_(apart, MASKED)


class TwoBranchWindowMSA(ProductAttention, WindowMSA):
    """Stock window attention, converted in place: the same parameters, one call for the windows of both branches.

    Linear layers are shared by the branches. Quantizers plug in here in two ways: ``qkv`` and ``proj`` may be replaced
    by branch-aware layers (roles qkv_in, proj_in), and ``query_key`` and ``attention_value`` may be set to branch-aware
    products ``(left, right, split) -> left @ right`` (roles q, k and attn, v). While both are None the products, the
    position bias, the mask and the softmax run as one fused operation. A ``QueryKeyLinear`` in the place of ``qkv``
    gives queries, keys and values by itself, which go through products, too.
    """

    @classmethod
    def convert(cls, stock: WindowMSA) -> TwoBranchWindowMSA:
        """Turn a stock module into this class without touching its parameters."""
        stock.__class__ = cls
        stock.query_key = None
        stock.attention_value = None
        for layer in (stock.qkv, stock.proj):
            FastLinear.convert(layer)
        return stock

    @property
    def product_sizes(self) -> tuple[int, int, int]:
        """Tokens of a window, channels of a head, and heads."""
        return self.window_size[0] * self.window_size[1], self.embed_dims // self.num_heads, self.num_heads

    def biases(self, shift: int) -> Tensor:
        """Position bias plus shift mask: (1, heads, tokens, tokens), or one for each kind of shifted window."""
        tokens = self.window_size[0] * self.window_size[1]
        table = self.relative_position_bias_table
        bias = table.t().index_select(1, self.relative_position_index.view(-1)).view(1, -1, tokens, tokens)
        if not shift:
            return bias
        return bias + kind_masks(self.window_size[0], shift, table.device, table.dtype).unsqueeze(1)

    def forward(self, x: Tensor, biases: Tensor, segments: tuple[Segment, ...] | None, split: Split) -> Tensor:
        """Attend within windows.

        Args:
            x: (windows, tokens, C).
            biases: (1 or kinds, heads, tokens, tokens) from :meth:`biases`; without segments (1 or windows, ...).
            segments: which windows need which of the biases; None where each window has its own, or all the same.
            split: windows of the high branch.

        Returns:
            (windows, tokens, C).
        """
        qkv = call_layer(self.qkv, x, split)
        dropout = self.attn_drop.p if self.attn_drop.training else 0.0
        if isinstance(qkv, tuple):
            x = self._attend_by_products(qkv, biases, segments, split)
        elif self.query_key is not None or self.attention_value is not None or torch.jit.is_tracing():
            # counters (get_flops) and exporters know products alone
            x = self._attend_by_products(split_heads(qkv, self.num_heads), biases, segments, split)
        elif segments is None:
            x = attend_whole(qkv, biases, self.num_heads, self.scale, dropout)
        else:
            x = attend(qkv, biases, segments, self.num_heads, self.scale, dropout)
        return self.proj_drop(call_layer(self.proj, x, split))

    def _attend_by_products(
        self,
        operands: tuple[Tensor, Tensor, Tensor],
        biases: Tensor,
        segments: tuple[Segment, ...] | None,
        split: Split,
    ) -> Tensor:
        """As :func:`attend`, through ``query_key`` and ``attention_value``; of operands as ``split_heads`` gives."""
        q, k, v = operands
        q, k = q * self.scale, k.transpose(-2, -1)
        logits = q @ k if self.query_key is None else self.query_key(q, k, split)
        if segments is None:
            logits = logits + biases
        else:
            logits = torch.cat([logits[start:stop] + biases[kind] for start, stop, kind in segments])
        attention = self.attn_drop(logits.softmax(-1).to(v.dtype))
        return merge_heads(attention @ v if self.attention_value is None else self.attention_value(attention, v, split))
