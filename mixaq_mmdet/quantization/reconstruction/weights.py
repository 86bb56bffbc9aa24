"""Reconstruction by the rounding of weights and the scales of activations, under a loss of one's choice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..layers import QuantWeight
from ..methods.base import BlockInputs, activation_quantizers
from ..quantizers.base import Quantizer
from ..quantizers.uniform import UniformQuantizer
from .block import BlockReconstruction
from .descent import Descent, Group, constant, cosine
from .losses import BlockLoss
from .rounding import ROUNDINGS
from .targets import FloatModelTargets


@dataclass(frozen=True)
class WeightSchedule:
    """How a block is trained; see the options of the methods for their meaning."""

    steps: int
    rounding: str
    lr: float
    scale_lr: float
    rounding_price: float
    drop: float
    seed: int


class WeightReconstruction(BlockReconstruction):
    """Trains rounding and scales of one block in place; afterwards its weights are values of their grids.

    Args:
        block: calibrated, in eval mode.
        inputs: its stored inputs, with those of the float model.
        loss: what errors of the output cost.
        schedule: how.
    """

    def __init__(self, block: nn.Module, inputs: BlockInputs, loss: BlockLoss, schedule: WeightSchedule) -> None:
        targets = FloatModelTargets(block, inputs, schedule.drop, schedule.seed)
        super().__init__(block, inputs, targets, loss, schedule.seed)
        self.schedule = schedule
        self.roundings = [ROUNDINGS[schedule.rounding](layer) for layer in rounded_layers(block)]
        self.grids = scaled_quantizers(block)

    def _train(self) -> None:
        schedule = self.schedule
        curve = cosine if ROUNDINGS[schedule.rounding].rate_falls else constant
        groups = [
            Group([rounding.trained for rounding in self.roundings], schedule.lr, curve),
            Group([tensor for grid in self.grids for tensor in grid.learnable()], schedule.scale_lr, cosine),
        ]
        descent = Descent(self.inputs, groups, schedule.steps, self.grids, self.name, 'quant.lr, quant.scale_lr')
        images = range(len(self.inputs))
        renewals = self.loss.renewals(schedule.steps)
        for step in range(schedule.steps):
            if step in renewals:
                with torch.no_grad():
                    self._use_trained()
                    self.loss.renew(self.targets, self.inputs)
                self.measure()
            index = self.draw(images, len(images))
            descent.step(None if index is None else partial(self._cost, index, step / schedule.steps))
            self.inputs.tick()
        for rounding in self.roundings:
            rounding.finish()

    def _cost(self, index: int, progress: float) -> Tensor:
        self._use_trained()
        cost = self.cost(index)
        for rounding in self.roundings:
            cost = cost + self.schedule.rounding_price * rounding.price(progress)
        return cost

    def _use_trained(self) -> None:
        for rounding in self.roundings:
            rounding.layer.hold(rounding.weight())


def rounded_layers(block: nn.Module) -> list[QuantWeight]:
    """The layers of a block whose weights have a uniform grid."""
    layers = [module for module in block.modules() if isinstance(module, QuantWeight)]
    return [layer for layer in layers if isinstance(layer.weight_quant, UniformQuantizer)]


def scaled_quantizers(block: nn.Module) -> list[Quantizer]:
    """The activation quantizers of a block that have something to learn."""
    return [quantizer for quantizer in activation_quantizers(block) if quantizer.learnable()]
