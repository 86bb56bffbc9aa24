"""Linear layers on codes, in the places of the simulated ones outside the blocks."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layouts import Grid, LinearWeights
from .part import Part
from .products import ExactLinear, steps_of

NO_WEIGHTS = 'IntegerSwin has no weights yet; load a file that tools/deploy.py convert wrote'


class IntegerLinear(Part):
    """Takes the place of an ``nn.Linear`` with one input grid; empty until filled."""

    made = ('grid', 'product')

    def __init__(self) -> None:
        super().__init__()
        self.grid: Grid | None = None
        self.product: ExactLinear | None = None

    def fill(self, weights: LinearWeights, grid: Grid) -> None:
        """Take over a layer and the grid of its input."""
        self.grid, self.product = grid, ExactLinear(weights, (grid,))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if self.grid is None or self.product is None:
            raise ValueError(NO_WEIGHTS)
        return self.product(steps_of(x, self.grid), self.grid)

    def _load_from_state_dict(self, *_: Any) -> None:
        """The backbone reads the file and fills its layers."""


class IntegerPatches(IntegerLinear):
    """Takes the place of the patch embedding's convolution.

    Args:
        conv: the convolution, without padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) to (B, N, H', W')."""
        patches = F.unfold(x, self.kernel_size, stride=self.stride).transpose(1, 2)
        sides = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        height, width = ((size - kernel) // stride + 1 for size, kernel, stride in sides)
        return super().forward(patches).transpose(1, 2).reshape(x.shape[0], -1, height, width)
