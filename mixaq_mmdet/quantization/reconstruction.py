"""Block-output reconstruction (AIQViT, arXiv 2502.04628): bring a block's output close to the float one by training.

Learned are the factors of low-rank compensations and the intervals of quantizers; weights are frozen. The target is
what the same block, its quantizers off, makes of the same inputs. One image of each rank is a step; every branch counts
equally. All ranks start from the same numbers and step by the same averaged gradients: they end with equal parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .compensation import LowRank
from .layers import QuantWeight
from .methods.base import BlockInputs
from .quantizers.base import Quantizer, quantizer_mode

MOST_BRANCHES = 2


@dataclass(frozen=True)
class Schedule:
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


class BlockReconstruction:
    """Trains one block in place.

    Args:
        block: calibrated, in eval mode.
        inputs: its stored inputs.
        schedule: how.
    """

    def __init__(self, block: nn.Module, inputs: BlockInputs, schedule: Schedule) -> None:
        self.block = block
        self.inputs = inputs
        self.schedule = schedule
        self.compensations = compensations(block)
        self.intervals = interval_quantizers(block)
        self.name = next(module.name for module in block.modules() if isinstance(module, Quantizer))
        # by name, so that a block's numbers do not depend on which blocks were trained before it in this process
        self.generator = torch.Generator().manual_seed(schedule.seed + crc32(self.name.encode()))
        self.targets: list[Sequence[Tensor]] = []
        self.scales: list[Tensor] = []

    def run(self) -> None:
        """Search the ranks where there is a choice, fix them, train factors and intervals."""
        layers = [module for module in self.block.modules() if isinstance(module, QuantWeight)]
        frozen = [parameter for parameter in self.block.parameters() if parameter.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for layer in layers:
                layer.hold()
            self._train()
        finally:
            for layer in layers:
                layer.unfreeze()
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _train(self) -> None:
        losses = self._set_targets()
        if self.schedule.search_steps and any(len(layer.candidates) > 1 for layer in self.compensations):
            ranks = self._search_ranks()
        else:
            ranks = [layer.candidates[-1] for layer in self.compensations]
        for layer, rank in zip(self.compensations, ranks, strict=True):
            layer.start(rank, self.generator)
        order = sorted(range(len(losses)), key=lambda index: losses[index])
        descent = _Descent(self, self._factors(), self._ends(), steps=self.schedule.steps)
        for step in range(self.schedule.steps):
            descent.step(self._draw(order, self._pool(step, len(order))))
            self.inputs.tick()

    def loss(self, index: int) -> Tensor:
        """Squared error of the outputs for one image, each branch in units of its error before training."""
        outputs = self.inputs.outputs(self.block, index)
        errors = [F.mse_loss(out, store[index]) for out, store in zip(outputs, self.targets, strict=True)]
        return torch.stack([error / scale for error, scale in zip(errors, self.scales, strict=False)]).sum()

    @torch.no_grad()
    def _set_targets(self) -> list[float]:
        """Store the float outputs; returns each image's loss before training."""
        stores: list[Any] = []
        errors = []
        for index in range(len(self.inputs)):
            with quantizer_mode(self.block, 'float'):
                targets = self.inputs.outputs(self.block, index)
            stores = stores or [self.inputs.store() for _ in targets]
            for store, target in zip(stores, targets, strict=True):
                store.append(target)
            outputs = self.inputs.outputs(self.block, index)
            errors.append(torch.stack([F.mse_loss(out, t) for out, t in zip(outputs, targets, strict=True)]))
        self.targets = stores
        scales = self._mean(errors).clamp(min=1e-12)
        self.scales = list(scales)
        return [float((error / scales[: len(error)]).sum()) for error in errors]

    def _mean(self, errors: list[Tensor]) -> Tensor:
        """Mean error of each branch over the images of all ranks; a rank without images does not know the branches."""
        table = torch.stack(errors) if errors else torch.zeros(1, MOST_BRANCHES)
        totals = F.pad(table.sum(0), (0, MOST_BRANCHES - table.shape[1]))
        images = table.new_tensor(float(len(errors)))
        self.inputs.average([totals, images])
        return totals / images

    def _search_ranks(self) -> list[int]:
        """First-order search: factors step on one half of the images, ranks' logits on the other, in turn."""
        schedule = self.schedule
        for layer in self.compensations:
            layer.start(layer.candidates[-1], self.generator)
        logits = [torch.zeros(len(layer.candidates), device=layer.down.device) for layer in self.compensations]
        halves = list(range(0, len(self.inputs), 2)), list(range(1, len(self.inputs), 2))
        first, second = halves[0], halves[1] or halves[0]
        factors = _Descent(self, self._factors(), steps=schedule.search_steps)
        ranks = _Descent(self, (logits, schedule.rank_lr), steps=schedule.search_steps, cost=self._expected_rank)
        try:
            for _ in range(schedule.search_steps):
                self._mix(logits)
                factors.step(self._draw(first, len(first)))
                ranks.step(self._draw(second, len(second)), before=lambda: self._mix(logits))
                self.inputs.tick()
        finally:
            for layer in self.compensations:
                layer.mixture = None
        return [
            layer.candidates[int(weights.argmax())] for layer, weights in zip(self.compensations, logits, strict=True)
        ]

    def _mix(self, logits: list[Tensor]) -> None:
        for layer, weights in zip(self.compensations, logits, strict=True):
            layer.mixture = weights.softmax(0) @ layer.staircase()

    def _expected_rank(self) -> Tensor:
        """Mean over layers of the expected share of the largest rank, times its price."""
        shares = [layer.mixture.mean() for layer in self.compensations if layer.mixture is not None]
        return self.schedule.rank_penalty * torch.stack(shares).mean()

    def _factors(self) -> tuple[list[Tensor], float]:
        return [factor for layer in self.compensations for factor in (layer.down, layer.up)], self.schedule.lr

    def _ends(self) -> tuple[list[Tensor], float]:
        return [end for quantizer in self.intervals for end in quantizer.learnable()], self.schedule.interval_lr

    def _pool(self, step: int, images: int) -> int:
        """How many of the easiest images are drawn from: linear pacing."""
        schedule = self.schedule
        if not schedule.curriculum:
            return images
        progress = min(1.0, step / max(schedule.curriculum_full * schedule.steps, 1))
        share = schedule.curriculum_start + (1 - schedule.curriculum_start) * progress
        return max(math.ceil(share * images), 1)

    def _draw(self, images: Sequence[int], pool: int) -> int | None:
        """One of the first ``pool`` images; None on a rank that has none."""
        place = torch.rand((), generator=self.generator)
        return images[min(int(place * pool), pool - 1)] if images else None


class _Descent:
    """Adam, with a rate that falls linearly to zero, on tensors that do not train otherwise.

    Args:
        owner: gives the loss.
        groups: (tensors, learning rate) pairs.
        steps: length of the schedule.
        cost: added to the loss.
    """

    def __init__(
        self, owner: BlockReconstruction, *groups: tuple[list[Tensor], float], steps: int, cost: Any = None
    ) -> None:
        self.owner = owner
        self.cost = cost
        self.tensors = [tensor for tensors, _ in groups for tensor in tensors]
        self.optimizer = torch.optim.Adam([{'params': list(t), 'lr': lr} for t, lr in groups if t])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: max(1 - step / max(steps, 1), 0))

    def step(self, index: int | None, before: Any = None) -> None:
        """One update on image ``index``; ``before`` rebuilds what depends on the tensors, with gradients on."""
        owner = self.owner
        try:
            for tensor in self.tensors:
                tensor.requires_grad_(True)
            grads = [torch.zeros_like(tensor) for tensor in self.tensors]
            loss = torch.zeros(())
            if index is not None:
                with torch.enable_grad():
                    if before is not None:
                        before()
                    loss = owner.loss(index) + (0 if self.cost is None else self.cost())
                    # nothing to learn where every layer chose rank 0
                    found = torch.autograd.grad(loss, self.tensors, allow_unused=True) if loss.requires_grad else ()
                for place, grad in enumerate(found):
                    grads[place] = grads[place] if grad is None else grad
        finally:
            for tensor in self.tensors:
                tensor.requires_grad_(False)
        loss = loss.detach()
        owner.inputs.average([loss, *grads])
        if not bool(torch.isfinite(loss)):  # on all ranks, or the others would wait for this one
            raise ValueError(f'reconstruction of {owner.name} diverged; lower quant.lr, quant.interval_lr')
        for tensor, grad in zip(self.tensors, grads, strict=True):
            tensor.grad = grad
        self.optimizer.step()
        self.schedule.step()
        for tensor in self.tensors:
            tensor.grad = None
        for quantizer in owner.intervals:
            quantizer.settle()


def compensations(block: nn.Module) -> list[LowRank]:
    """The low-rank compensations of a block."""
    return [module for module in block.modules() if isinstance(module, LowRank)]


def interval_quantizers(block: nn.Module) -> list[Any]:
    """The quantizers of a block whose grids are learned by reconstruction."""
    return [module for module in block.modules() if isinstance(module, Quantizer) and hasattr(module, 'settle')]
