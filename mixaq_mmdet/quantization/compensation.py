"""Low-rank compensation (AIQViT, arXiv 2502.04628): a small trained product B A beside a frozen, quantized weight.

Its factors have the size of the largest candidate rank from the constructor on, with the rank in a buffer: a checkpoint
of any searched ranks loads into a model built from the config alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LowRank(nn.Module):
    """y + B A x, with the leading ``rank`` rows of A and columns of B; rank 0 adds nothing.

    Factors are float and are buffers: outside a reconstruction nothing trains them.

    Args:
        in_features: of the layer.
        out_features: of the layer.
        candidates: ranks that may be chosen; more than the layer's smaller side is cut to it.
    """

    down: Tensor
    up: Tensor
    chosen: Tensor

    def __init__(self, in_features: int, out_features: int, candidates: list[int]) -> None:
        super().__init__()
        self.candidates = sorted({min(rank, in_features, out_features) for rank in candidates})
        largest = self.candidates[-1]
        self.rank = 0
        self.register_buffer('down', torch.zeros(largest, in_features))
        self.register_buffer('up', torch.zeros(out_features, largest))
        self.register_buffer('chosen', torch.zeros((), dtype=torch.int64))
        self.mixture: Tensor | None = None

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Add B A x of ``x`` (..., in_features) to the layer's output ``out`` (..., out_features)."""
        if self.mixture is not None:
            return out + F.linear(F.linear(x, self.down) * self.mixture, self.up)
        if self.rank == 0:
            return out
        return out + F.linear(F.linear(x, self.down[: self.rank]), self.up[:, : self.rank])

    @property
    def parameters_added(self) -> int:
        """Numbers in the active factors; as many MACs are added for each token."""
        return self.rank * (self.down.shape[1] + self.up.shape[0])

    @torch.no_grad()
    def start(self, rank: int, generator: torch.Generator) -> None:
        """Take ``rank``, with a random A and a B of zero: the layer computes what it computed without."""
        self.rank = rank
        self.chosen.fill_(rank)
        self.up.zero_()
        self.down.zero_()
        noise = torch.randn(rank, self.down.shape[1], generator=generator) / self.down.shape[1] ** 0.5
        self.down[:rank] = noise.to(self.down)

    def staircase(self) -> Tensor:
        """(candidates, largest) 1 where a candidate rank uses a column: softmax(logits) @ this mixes the ranks."""
        columns = torch.arange(self.candidates[-1])
        steps = torch.tensor(self.candidates)[:, None] > columns
        return steps.to(self.down)

    def describe(self) -> str:
        """Rank and cost, for the summary table."""
        return f'rank {self.rank}: {self.parameters_added} parameters, as many MACs per token'

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # a float file has no factors, and those of other weights are void
        for name, buffer in self.named_buffers(recurse=False):
            state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.rank = int(self.chosen)

    def extra_repr(self) -> str:
        return f'rank={self.rank}, candidates={self.candidates}'
