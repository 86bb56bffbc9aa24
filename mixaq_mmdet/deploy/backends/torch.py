"""Exact integers in plain torch, on every machine: what the other engines are compared with."""

from __future__ import annotations

from mixaq_mmdet.registry import BACKENDS

from ..exact_layer import ExactLayer
from ..layouts import BlockWeights, Layer
from ..torch_block import TorchBlock
from .base import Backend


@BACKENDS.register_module(name='torch')
class TorchBackend(Backend):
    """Every part in its own torch form."""

    name = 'torch'
    runs = (BlockWeights, Layer)
    preference = 0

    def describe(self, reason: str) -> str:
        """Why it is not faster belongs to it."""
        return f'exact integers in plain torch, because {reason}'

    def block(self, weights: BlockWeights) -> TorchBlock:
        """A block, operation by operation."""
        return TorchBlock(weights)

    def layer(self, layer: Layer) -> ExactLayer:
        """Whole numbers in float32 or float64."""
        return ExactLayer(layer)
