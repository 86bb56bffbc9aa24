"""Query-key reparameterisation of OFQ (arXiv 2302.02210): the product of query and key weights is what is quantized.

Rounded one by one, query and key weights push each other over rounding boundaries while they train. For a head with
query weight Wq (d, C), bias bq (d,) and key weight Wk (d, C) the logits of tokens x_i, x_j are

    (Wq x_i + bq) (Wk x_j + bk) = x_i Wq^T Wk x_j + bq^T Wk x_j + terms without j.

Softmax cancels terms that are the same for all keys. So keys become the layer's input itself, and queries become
M x_i + c with M = Wk^T Wq (C, C), which is quantized, and the bias row c = Wk^T bq (C,), which is not: without the row
a float checkpoint would mean another function. Wq, Wk and bq are what is stored and trained.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import QuantWeight, Split, take_over


class QueryKeyLinear(QuantWeight, nn.Linear):
    """The layer ``qkv`` of an attention, with the parameters of the float one: (3 C, C) and (3 C,).

    Its weight quantizer sees (heads * C + C, C): M of every head, then the value weight.
    """

    num_heads: int

    @property
    def source_weight(self) -> Tensor:
        query, key, value = self.weight.chunk(3)
        products = self._through_keys(query.unflatten(0, (self.num_heads, -1)), key)
        return torch.cat([products, value])

    def forward(  # type: ignore[override]  # three results, not one that is cut in three
        self, x: Tensor, split: Split | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads.

        Args:
            x: (windows, tokens, C).
            split: windows of the high branch.

        Returns:
            Queries (windows, heads, tokens, C), keys (windows, 1, tokens, C), which the heads share, and values
            (windows, heads, tokens, C / heads).
        """
        x = self.input_quant(x, split)
        channels = self.in_features
        out = F.linear(x, self.quantized_weight(), self._derived_bias())
        queries, values = out.split([self.num_heads * channels, channels], dim=-1)
        return self._by_head(queries), x.unsqueeze(1), self._by_head(values)

    def boundary_distance(self) -> Tensor | None:
        """As in every layer, for the values; queries and keys are at a distance of 0: none is rounded by itself."""
        distance = super().boundary_distance()
        if distance is None:
            return None
        return torch.cat([torch.zeros_like(self.weight[: -self.in_features]), distance[-self.in_features :]])

    def _derived_bias(self) -> Tensor | None:
        if self.bias is None:
            return None
        query, _, value = self.bias.chunk(3)
        key = self.weight.chunk(3)[1]
        return torch.cat([self._through_keys(query.view(self.num_heads, -1, 1), key).view(-1), value])

    def _through_keys(self, query: Tensor, key: Tensor) -> Tensor:
        """(heads, d, N) times the key weight (heads * d, C) of each head: (heads * C, N)."""
        key = key.unflatten(0, (self.num_heads, -1))
        with torch.autocast(key.device.type, enabled=False):  # what is quantized is not rounded before
            return (key.transpose(1, 2) @ query).flatten(0, 1)

    def _by_head(self, x: Tensor) -> Tensor:
        """(windows, tokens, heads * N) to (windows, heads, tokens, N)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def to_query_key(layer: nn.Linear, num_heads: int, weight_quant: Any, input_quant: Any) -> QueryKeyLinear:
    """A QueryKeyLinear that owns the parameters of ``layer``, which gives queries, keys and values."""
    quant = QueryKeyLinear(layer.in_features, layer.out_features, bias=False, device='meta')
    quant.num_heads = num_heads
    return take_over(quant, layer, weight_quant, input_quant, add_bias=False)
