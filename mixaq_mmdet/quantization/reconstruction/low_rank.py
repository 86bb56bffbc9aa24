"""Reconstruction by low-rank compensation and learned intervals (AIQViT, arXiv 2502.04628); weights are frozen.

The target is what the same block, its quantizers off, makes of the same inputs. Images come in the order of a
curriculum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..compensation import LowRank
from ..methods.base import BlockInputs
from ..quantizers.base import Quantizer
from .block import BlockReconstruction
from .descent import Descent, Group
from .losses import MeanSquaredError
from .targets import Targets


@dataclass(frozen=True)
class LowRankSchedule:
    """How long and how fast a block is trained; see the options of the method for their meaning."""

    steps: int
    search_steps: int
    lr: float
    interval_lr: float
    rank_lr: float
    rank_penalty: float
    curriculum: bool
    curriculum_start: float
    curriculum_full: float
    seed: int


class LowRankReconstruction(BlockReconstruction):
    """Trains compensations and intervals of one block in place.

    Args:
        block: calibrated, in eval mode.
        inputs: its stored inputs.
        schedule: how.
    """

    def __init__(self, block: nn.Module, inputs: BlockInputs, schedule: LowRankSchedule) -> None:
        super().__init__(block, inputs, Targets(block, inputs), MeanSquaredError(), schedule.seed)
        self.schedule = schedule
        self.compensations = compensations(block)
        self.intervals = interval_quantizers(block)

    def _train(self) -> None:
        """Search the ranks where there is a choice, fix them, train factors and intervals."""
        losses = self.measure()
        if self.schedule.search_steps and any(len(layer.candidates) > 1 for layer in self.compensations):
            ranks = self._search_ranks()
        else:
            ranks = [layer.candidates[-1] for layer in self.compensations]
        for layer, rank in zip(self.compensations, ranks, strict=True):
            layer.start(rank, self.generator)
        order = sorted(range(len(losses)), key=lambda index: losses[index])
        descent = self._descent([self._factors(), self._ends()], self.schedule.steps)
        for step in range(self.schedule.steps):
            descent.step(self._cost_of(self.draw(order, self._pool(step, len(order)))))
            self.inputs.tick()

    def _cost_of(self, index: int | None) -> Callable[[], Tensor] | None:
        return None if index is None else partial(self.cost, index)

    def _descent(self, groups: list[Group], steps: int) -> Descent:
        return Descent(self.inputs, groups, steps, self.intervals, self.name, 'quant.lr, quant.interval_lr')

    def _search_ranks(self) -> list[int]:
        """First-order search: factors step on one half of the images, ranks' logits on the other, in turn."""
        schedule = self.schedule
        for layer in self.compensations:
            layer.start(layer.candidates[-1], self.generator)
        logits = [torch.zeros(len(layer.candidates), device=layer.down.device) for layer in self.compensations]
        halves = list(range(0, len(self.inputs), 2)), list(range(1, len(self.inputs), 2))
        first, second = halves[0], halves[1] or halves[0]
        factors = self._descent([self._factors()], schedule.search_steps)
        ranks = self._descent([Group(logits, schedule.rank_lr)], schedule.search_steps)
        try:
            for _ in range(schedule.search_steps):
                self._mix(logits)
                factors.step(self._cost_of(self.draw(first, len(first))))
                index = self.draw(second, len(second))
                ranks.step(None if index is None else partial(self._cost_of_ranks, index, logits))
                self.inputs.tick()
        finally:
            for layer in self.compensations:
                layer.mixture = None
        return [
            layer.candidates[int(weights.argmax())] for layer, weights in zip(self.compensations, logits, strict=True)
        ]

    def _cost_of_ranks(self, index: int, logits: list[Tensor]) -> Tensor:
        """The loss of an image, and the price of the ranks: the expected share of the largest, mean over layers."""
        self._mix(logits)
        cost = self.cost(index)
        shares = [layer.mixture.mean() for layer in self.compensations if layer.mixture is not None]
        return cost + self.schedule.rank_penalty * torch.stack(shares).mean()

    def _mix(self, logits: list[Tensor]) -> None:
        for layer, weights in zip(self.compensations, logits, strict=True):
            layer.mixture = weights.softmax(0) @ layer.staircase()

    def _factors(self) -> Group:
        return Group([factor for layer in self.compensations for factor in (layer.down, layer.up)], self.schedule.lr)

    def _ends(self) -> Group:
        return Group([end for quantizer in self.intervals for end in quantizer.learnable()], self.schedule.interval_lr)

    def _pool(self, step: int, images: int) -> int:
        """How many of the easiest images are drawn from: linear pacing."""
        schedule = self.schedule
        if not schedule.curriculum:
            return images
        progress = min(1.0, step / max(schedule.curriculum_full * schedule.steps, 1))
        share = schedule.curriculum_start + (1 - schedule.curriculum_start) * progress
        return max(math.ceil(share * images), 1)


def compensations(block: nn.Module) -> list[LowRank]:
    """The low-rank compensations of a block."""
    return [module for module in block.modules() if isinstance(module, LowRank)]


def interval_quantizers(block: nn.Module) -> list[Quantizer]:
    """The quantizers of a block whose intervals are learned."""
    return [module for module in block.modules() if isinstance(module, Quantizer) and module.reconstructed]
