"""What the methods share that reconstruct blocks by rounding and scales: options, budgets, what they refuse."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from mixaq_mmdet.checks import check_count, check_number

from ..quantizers.base import Quantizer
from ..reconstruction import (
    ROUNDINGS,
    BlockLoss,
    WeightReconstruction,
    WeightSchedule,
    rounded_layers,
    scaled_quantizers,
)
from .base import BlockInputs
from .repq import RepQ

BUDGETS = ('published', 'small')
SMALL = {'steps': 3000, 'rounding': 'StraightThrough', 'lr': 2e-5, 'scale_lr': 2e-4}
"""The small budget is this package's, for CPUs: short, with straight-through rounding."""


class ReconstructedMethod(RepQ):
    """Base of the methods that train rounding and scales of block after block, on top of RepQ's ranges and fold.

    Layers outside the backbone, which have no block to reconstruct, are calibrated as RepQ does.

    Args:
        budget: 'published', or 'small' for CPUs; sets the options that are None.
        steps: updates per block, one image of each process each; 0 trains nothing.
        rounding: 'AdaRound' or 'StraightThrough'.
        lr: learning rate of the rounding.
        scale_lr: of the scales of activations; 0 keeps them.
        rounding_price: of a weight halfway between two values of the grid, in units of the block's loss before
            training; for AdaRound.
        drop: chance of each entry of a block's input to be the float model's in a step (QDrop).
        seed: of the order of images and of ``drop``.
    """

    uses_float_inputs = True
    published: Mapping[str, Any] = {'steps': 20000, 'rounding': 'AdaRound', 'lr': 1e-3, 'scale_lr': 4e-5}
    """What the published budget sets."""

    def __init__(
        self,
        budget: str = 'published',
        steps: int | None = None,
        rounding: str | None = None,
        lr: float | None = None,
        scale_lr: float | None = None,
        rounding_price: float = 0.01,
        drop: float = 0.5,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.budget = _check_name(budget, 'quant.budget', BUDGETS)
        given = {'steps': steps, 'rounding': rounding, 'lr': lr, 'scale_lr': scale_lr}
        chosen = {
            **(self.published if budget == 'published' else SMALL),
            **{name: value for name, value in given.items() if value is not None},
        }
        self.steps = check_count(chosen['steps'], 'quant.steps')
        self.rounding = _check_name(chosen['rounding'], 'quant.rounding', ROUNDINGS)
        self.lr = check_number(chosen['lr'], 'quant.lr', usual=1e-3)
        self.scale_lr = check_number(chosen['scale_lr'], 'quant.scale_lr', usual=4e-5)
        self.rounding_price = check_number(rounding_price, 'quant.rounding_price', usual=0.01)
        self.drop = check_number(drop, 'quant.drop', 0, 1, usual=0.5)
        self.seed = check_count(seed, 'quant.seed')

    @abstractmethod
    def loss(self) -> BlockLoss:
        """What errors of a block's output cost; a new one for each block."""

    def calibrate(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        if not self._learns(block):
            return super().calibrate(block, inputs)
        self._check_first([block])
        noise = super().calibrate(block, inputs)
        schedule = WeightSchedule(**{field.name: getattr(self, field.name) for field in fields(WeightSchedule)})
        WeightReconstruction(block, inputs, self.loss(), schedule).run()
        return noise

    def calibration_steps(self, block: nn.Module, images: int) -> int:
        steps = super().calibration_steps(block, images)
        return steps + (self.steps + self.loss().passes(self.steps) * images if self._learns(block) else 0)

    def _learns(self, block: nn.Module) -> bool:
        roles = {module.role for module in block.modules() if isinstance(module, Quantizer)}
        return bool(self.steps and 'head_in' not in roles and (rounded_layers(block) or scaled_quantizers(block)))


def _check_name(value: Any, field: str, names: Iterable[str]) -> str:
    if value not in list(names):
        raise ValueError(f'{field}={value!r} is unknown; use one of {list(names)}')
    return value
