"""Window attention over windows of both branches at once."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from mmdet.models.backbones.swin import WindowMSA
from torch import Tensor, nn

from mixaq_mmdet.windows.assignment import Segment
from mixaq_mmdet.windows.geometry import kind_regions, shift_mask

from .fast_layers import FastLinear
from .window_attention import attend, merge_heads, split_heads

MASKED = -100.0  # as in stock Swin: what another region's logits are lowered by


class Split(NamedTuple):
    """Which entries of dimension 0 belong to which branch: the first ``high`` to the high one, the rest to the low one.

    Dimension 0 counts windows, of ``tokens`` tokens each. Only the FFN of a padded map, which skips padding, counts
    tokens there; ``slots`` then tells the place of each: it is token ``slots % tokens`` of its window.

    Attributes:
        high: entries of the high branch.
        slots: (entries,) place of each token among windows * tokens, or None where dimension 0 counts windows.
        real: (windows, tokens) bool, False for padding; None where dimension 0 counts tokens or there is no padding.
    """

    high: int
    slots: Tensor | None = None
    real: Tensor | None = None


def call_layer(layer: nn.Module, x: Tensor, split: Split) -> Tensor:
    """Call a layer of a block; one that has ``branch_aware = True`` is told which entries belong to which branch."""
    return layer(x, split) if getattr(layer, 'branch_aware', False) else layer(x)


@lru_cache(maxsize=16)
def kind_masks(window: int, shift: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What is added to the logits of each kind of window, (kinds, tokens, tokens)."""
    with torch.inference_mode(False):  # what is cached in inference must serve training too
        apart = shift_mask(kind_regions(window, shift, device))
        return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill_(apart, MASKED)


class TwoBranchWindowMSA(WindowMSA):
    """Stock window attention, converted in place: the same parameters, one call for the windows of both branches.

    Linear layers are shared by the branches. Quantizers plug in here in two ways: ``qkv`` and ``proj`` may be replaced
    by branch-aware layers (roles qkv_in, proj_in), and ``query_key`` and ``attention_value`` may be set to branch-aware
    products ``(left, right, split) -> left @ right`` (roles q, k and attn, v). While both are None the products, the
    position bias, the mask and the softmax run as one fused operation.
    """

    query_key: nn.Module | None
    attention_value: nn.Module | None

    @classmethod
    def convert(cls, stock: WindowMSA) -> TwoBranchWindowMSA:
        """Turn a stock module into this class without touching its parameters."""
        stock.__class__ = cls
        stock.query_key = None
        stock.attention_value = None
        for layer in (stock.qkv, stock.proj):
            FastLinear.convert(layer)
        return stock

    def biases(self, shift: int) -> Tensor:
        """Position bias plus shift mask: (1, heads, tokens, tokens), or one for each kind of shifted window."""
        tokens = self.window_size[0] * self.window_size[1]
        table = self.relative_position_bias_table
        bias = table.t().index_select(1, self.relative_position_index.view(-1)).view(1, -1, tokens, tokens)
        if not shift:
            return bias
        return bias + kind_masks(self.window_size[0], shift, table.device, table.dtype).unsqueeze(1)

    def forward(self, x: Tensor, biases: Tensor, segments: tuple[Segment, ...], split: Split) -> Tensor:
        """Attend within windows.

        Args:
            x: (windows, tokens, C).
            biases: (1 or kinds, heads, tokens, tokens) from :meth:`biases`.
            segments: which windows need which of the biases.
            split: windows of the high branch.

        Returns:
            (windows, tokens, C).
        """
        qkv = call_layer(self.qkv, x, split)
        fused = self.query_key is None and self.attention_value is None
        if fused and not torch.jit.is_tracing():  # counters (get_flops) and exporters know products alone
            dropout = self.attn_drop.p if self.attn_drop.training else 0.0
            x = attend(qkv, biases, segments, self.num_heads, self.scale, dropout)
        else:
            x = self._attend_by_products(qkv, biases, segments, split)
        return self.proj_drop(call_layer(self.proj, x, split))

    def _attend_by_products(self, qkv: Tensor, biases: Tensor, segments: tuple[Segment, ...], split: Split) -> Tensor:
        """As :func:`attend`, through ``query_key`` and ``attention_value``."""
        q, k, v = split_heads(qkv, self.num_heads)
        q, k = q * self.scale, k.transpose(-2, -1)
        logits = q @ k if self.query_key is None else self.query_key(q, k, split)
        biased = [logits[start:stop] + biases[kind] for start, stop, kind in segments]
        attention = torch.cat(biased).softmax(-1).to(v.dtype)
        attention = self.attn_drop(attention)
        return merge_heads(attention @ v if self.attention_value is None else self.attention_value(attention, v, split))
