"""What a block is reconstructed towards, and on which inputs it runs meanwhile."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..methods.base import BlockInputs, TensorList
from ..quantizers.base import quantizer_mode


class Pair(NamedTuple):
    """What one branch makes of an image and what it should make, (1, tokens, C) each."""

    output: Tensor
    target: Tensor


class Targets:
    """Float outputs of a block on the inputs that the quantized blocks before it made: its own error is answered.

    Args:
        block: the block.
        inputs: its stored inputs.
    """

    def __init__(self, block: nn.Module, inputs: BlockInputs) -> None:
        self.block = block
        self.inputs = inputs
        self.stores: list[TensorList] = []

    def store(self) -> None:
        """Run the block in float on every image."""
        for index in range(len(self.inputs)):
            with quantizer_mode(self.block, 'float'):
                found = self._float_outputs(index)
            self.stores = self.stores or [self.inputs.store() for _ in found]
            for store, target in zip(self.stores, found, strict=True):
                store.append(target)

    def pairs(self, index: int, training: bool = False) -> list[Pair]:
        """What the block makes of an image now, once per branch; ``training`` takes the inputs of a training step."""
        outputs = self.inputs.outputs(self.block, index)
        return [Pair(output, store[index]) for output, store in zip(outputs, self.stores, strict=True)]

    def _float_outputs(self, index: int) -> list[Tensor]:
        return self.inputs.outputs(self.block, index)


class FloatModelTargets(Targets):
    """Outputs of the float model: errors that the blocks before made are answered, too, as far as the block can.

    In training steps the inputs are mixed entry by entry, as in QDrop (arXiv 2203.05740): each comes from the quantized
    blocks before, or else from the float model. All windows have the same target, whichever branch they run in;
    windows that a branch leaves out have no error.

    Args:
        block: the block.
        inputs: its stored inputs.
        drop: chance of an entry to come from the float model.
        seed: of the mixing; each rank may have its own images, so that nothing else may draw from the generator.
    """

    def __init__(self, block: nn.Module, inputs: BlockInputs, drop: float, seed: int) -> None:
        super().__init__(block, inputs)
        self.drop = drop
        self.seed = seed
        self._generator: torch.Generator | None = None

    def pairs(self, index: int, training: bool = False) -> list[Pair]:
        outputs = self.inputs.outputs(self.block, index, self._mix if training and self.drop else None)
        target = self.stores[0][index]
        return [
            Pair(output if worked is None else torch.where(worked, output, target), target)
            for output, worked in zip(outputs, self.inputs.worked(index), strict=True)
        ]

    def _float_outputs(self, index: int) -> list[Tensor]:
        return self.inputs.outputs(self.block, index, _take_float)[:1]

    def _mix(self, quantized: Tensor, from_float: Tensor) -> Tensor:
        """Entries of both, drawn where the tensors lie."""
        if self._generator is None:
            self._generator = torch.Generator(quantized.device).manual_seed(self.seed)
        chance = torch.rand(quantized.shape, generator=self._generator, device=quantized.device)
        return torch.where(chance < self.drop, from_float, quantized)


def _take_float(quantized: Tensor, from_float: Tensor) -> Tensor:
    return from_float
