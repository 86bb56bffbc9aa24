"""Quantize and Dequantize on the residuals of Swin blocks, which the simulated model does not have.

TensorRT adds a residual inside the kernel of the product in front of the addition. Where the residual is quantized,
that kernel reads a quarter of the bytes. The grids are measured here, and they cost accuracy: residuals have outliers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixaq_mmdet.models.two_branch_block import TwoBranchSwinBlock

from .grids import ActivationGrid
from .quantize import ActivationNodes

BITS = 8
LARGEST_CODE = 2 ** (BITS - 1) - 1
Ranges = dict[str, dict[str, float]]
"""Largest absolute residual by the block's path and by its part."""


class _MeasuredBlock(TwoBranchSwinBlock):
    """Remembers the largest absolute value of each residual."""

    largest: dict[str, float]

    def residual(self, part: str, tokens: Tensor) -> Tensor:
        """``tokens`` as they are."""
        self.largest[part] = max(self.largest.get(part, 0.0), float(tokens.abs().max()))
        return tokens


class _QuantizedBlock(TwoBranchSwinBlock):
    """Leaves nodes on each residual."""

    residual_nodes: nn.ModuleDict

    def residual(self, part: str, tokens: Tensor) -> Tensor:
        """``tokens`` on their grid."""
        return self.residual_nodes[part](tokens)


@torch.no_grad()
def measure_residuals(backbone: nn.Module, images: Iterable[Tensor]) -> Ranges:
    """The ranges of a simulated backbone on normalised images (1, 3, H, W); blocks without a kept window have none."""
    with _measured(backbone) as blocks:
        for x in images:
            backbone(x)
        return {path: block.largest for path, block in blocks.items() if block.largest}


@contextmanager
def _measured(backbone: nn.Module) -> Iterator[dict[str, _MeasuredBlock]]:
    found = {}
    for path, block in _blocks(backbone):
        block.__class__ = _MeasuredBlock
        block.largest = {}
        found[path] = block
    try:
        yield found
    finally:
        for block in found.values():
            block.__class__ = TwoBranchSwinBlock
            del block.largest


def quantize_residuals(backbone: nn.Module, ranges: Ranges) -> int:
    """Let the blocks leave int8 nodes with zero point 0 on their residuals, in place; how many residuals there are."""
    for path, block in _blocks(backbone):
        if path in ranges:
            block.__class__ = _QuantizedBlock
            block.residual_nodes = nn.ModuleDict(
                {part: ActivationNodes(_grid(largest), signed=True) for part, largest in ranges[path].items()}
            )
    return sum(map(len, ranges.values()))


def _grid(largest: float) -> ActivationGrid:
    scale = largest / LARGEST_CODE or 1.0
    return ActivationGrid(scale, 2 ** (BITS - 1), BITS)


def _blocks(backbone: nn.Module) -> list[tuple[str, TwoBranchSwinBlock]]:
    return [(path, module) for path, module in backbone.named_modules() if isinstance(module, TwoBranchSwinBlock)]
