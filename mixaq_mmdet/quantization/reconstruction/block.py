"""What every reconstruction of a block shares.

Targets are what the block's float form makes; one image of each rank is a step; every branch counts equally. All ranks
start from the same numbers and step by the same averaged gradients: they end with equal parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor, nn

from ..layers import QuantWeight
from ..methods.base import BlockInputs
from ..quantizers.base import Quantizer
from .losses import BlockLoss
from .means import mean_over_ranks
from .targets import Targets


class BlockReconstruction(ABC):
    """Trains one block in place.

    Args:
        block: calibrated, in eval mode.
        inputs: its stored inputs.
        targets: what it should make.
        loss: what its errors cost.
        seed: of the order of images, and of whatever starts at random.
    """

    def __init__(self, block: nn.Module, inputs: BlockInputs, targets: Targets, loss: BlockLoss, seed: int) -> None:
        self.block = block
        self.inputs = inputs
        self.targets = targets
        self.loss = loss
        self.name = next(module.name for module in block.modules() if isinstance(module, Quantizer))
        # by name, so that a block's numbers do not depend on which blocks were trained before it in this process
        self.generator = torch.Generator().manual_seed(seed + crc32(self.name.encode()))
        self.first_values: list[list[Tensor]] = []

    def run(self) -> None:
        """Train; afterwards nothing of the block stays attached to a graph, and its parameters are as they were."""
        layers = [module for module in self.block.modules() if isinstance(module, QuantWeight)]
        frozen = [parameter for parameter in self.block.parameters() if parameter.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for layer in layers:
                layer.hold()
            with torch.no_grad():
                self.targets.store()
            self._train()
        finally:
            for layer in layers:
                layer.unfreeze()
            for parameter in frozen:
                parameter.requires_grad_(True)

    @abstractmethod
    def _train(self) -> None:
        """Train, with weights held and targets stored."""

    def cost(self, index: int) -> Tensor:
        """The loss of an image in a training step: every term in units of its first value, branches added up."""
        parts = [
            weight * term / first
            for terms, values in zip(self._terms(index, training=True), self.first_values, strict=False)
            for weight, term, first in zip(self.loss.weights, terms, values, strict=True)
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def measure(self) -> list[float]:
        """Set the first values to the means over the images of all ranks; returns each image's loss in their units."""
        images = range(len(self.inputs))
        tables = [torch.stack([torch.stack(terms) for terms in self._terms(index)]) for index in images]
        first = mean_over_ranks(tables, self.inputs).clamp(min=1e-12)
        self.first_values = [list(values) for values in first]
        weights = first.new_tensor(self.loss.weights)
        return [float((table / first * weights).sum()) for table in tables]

    def draw(self, images: Sequence[int], pool: int) -> int | None:
        """One of the first ``pool`` images; None on a rank that has none."""
        place = torch.rand((), generator=self.generator)
        return images[min(int(place * pool), pool - 1)] if images else None

    def _terms(self, index: int, training: bool = False) -> list[list[Tensor]]:
        pairs = self.targets.pairs(index, training)
        return [self.loss.terms(pair, branch, index) for branch, pair in enumerate(pairs)]
