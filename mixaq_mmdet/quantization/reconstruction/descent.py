"""Gradient descent on tensors that do not train otherwise, by the same steps on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..methods.base import BlockInputs
from ..quantizers.base import Quantizer

Curve = Callable[[float], float]
"""From the share of the steps that are done, 0 to 1, to the share of the learning rate."""


def constant(progress: float) -> float:
    """The same rate all the time."""
    return 1.0


def linear(progress: float) -> float:
    """Falls to zero in a straight line."""
    return max(1 - progress, 0.0)


def cosine(progress: float) -> float:
    """Falls to zero along half a cosine."""
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


class Group(NamedTuple):
    """Tensors that share a learning rate."""

    tensors: list[Tensor]
    lr: float
    curve: Curve = linear


class Descent:
    """Adam on groups of tensors; gradients are averaged over the ranks that have images.

    Args:
        inputs: averages over ranks.
        groups: what is trained; their tensors become leaves that need gradients within a step only.
        steps: length of the curves.
        grids: quantizers whose tensors are trained, to be settled after each step.
        name: of the block, and ``rates`` the options that set learning rates: for the message about divergence.
    """

    def __init__(
        self,
        inputs: BlockInputs,
        groups: Sequence[Group],
        steps: int,
        grids: Sequence[Quantizer],
        name: str,
        rates: str,
    ) -> None:
        self.inputs = inputs
        self.grids = grids
        self.name = name
        self.rates = rates
        used = [group for group in groups if group.tensors]
        self.tensors = [tensor for group in used for tensor in group.tensors]
        self.optimizer = torch.optim.Adam([{'params': list(group.tensors), 'lr': group.lr} for group in used])
        curves = [_by_step(group.curve, steps) for group in used]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, curves)

    def step(self, loss: Callable[[], Tensor] | None) -> None:
        """One update; ``loss`` is called with gradients on, and is None on a rank that has no image."""
        value, grads = self._gradients(loss)
        self.inputs.average([value, *grads])
        if not bool(torch.isfinite(value)):  # on all ranks, or the others would wait for this one
            raise ValueError(f'reconstruction of {self.name} diverged; lower {self.rates}')
        for tensor, grad in zip(self.tensors, grads, strict=True):
            tensor.grad = grad
        self.optimizer.step()
        self.schedule.step()
        for tensor in self.tensors:
            tensor.grad = None
        for quantizer in self.grids:
            quantizer.settle()

    def _gradients(self, loss: Callable[[], Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """The loss and its gradient by each tensor: zero where it does not depend on it."""
        grads = [torch.zeros_like(tensor) for tensor in self.tensors]
        if loss is None:
            return torch.zeros(()), grads
        try:
            for tensor in self.tensors:
                tensor.requires_grad_(True)
            with torch.enable_grad():
                value = loss()
                # nothing to learn where every layer chose rank 0
                found = torch.autograd.grad(value, self.tensors, allow_unused=True) if value.requires_grad else ()
        finally:
            for tensor in self.tensors:
                tensor.requires_grad_(False)
        for place, grad in enumerate(found):
            grads[place] = grads[place] if grad is None else grad
        return value.detach(), grads


def _by_step(curve: Curve, steps: int) -> Callable[[int], float]:
    return lambda step: curve(step / max(steps, 1))
