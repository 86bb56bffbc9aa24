"""What the error of a block's output costs, by paper; each is a small class.

A loss is a sum of terms, each in units of its mean over the images when the loss was last renewed, which for most is
before training. It is computed for each branch by itself; the branches add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.base import BlockInputs, TensorList
from .means import mean_over_ranks
from .targets import Pair, Targets


class BlockLoss(ABC):
    """Base of the losses."""

    weights: tuple[float, ...] = (1.0,)
    """Of the terms, each of which is 1 when the loss was renewed."""

    def renewals(self, steps: int) -> list[int]:
        """Steps before which the loss is renewed: anew from what the block makes by then."""
        return [0]

    def passes(self, steps: int) -> int:
        """How often renewing asks for output gradients of every image."""
        return 0

    @abstractmethod
    def renew(self, targets: Targets, inputs: BlockInputs) -> None:
        """Prepare, with targets stored."""

    @abstractmethod
    def terms(self, pair: Pair, branch: int, index: int) -> list[Tensor]:
        """The terms of one branch (0 for high, 1 for low) of an image."""


class MeanSquaredError(BlockLoss):
    """Mean squared error."""

    def renew(self, targets: Targets, inputs: BlockInputs) -> None:
        """Nothing to prepare."""

    def terms(self, pair: Pair, branch: int, index: int) -> list[Tensor]:
        return [F.mse_loss(*pair)]


class LowRankFisher(BlockLoss):
    """FIMA-Q (CVPR 2025): a Fisher matrix of low rank, gathered while training goes on, and its diagonal.

    Before each of ``rows`` equal parts of the training a row is added to G, the mean |gradient| of the whole model's
    loss at the block's output, and one to E, the mean |error| of that output. With d = |z^ - z| of a token and
    B = (E E^T)^-1 the terms are mean(d G^T B G d^T) and mean(d^2 mean(G)).

    Images differ in size here, so that rows have an entry for each channel: means are over tokens, too [ours].

    Args:
        rows: how many.
    """

    weights = (1.0, 1.0)

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.gradients: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.inverse = torch.empty(0)

    def renewals(self, steps: int) -> list[int]:
        return sorted({steps * row // self.rows for row in range(self.rows)})

    def passes(self, steps: int) -> int:
        return len(self.renewals(steps))

    def renew(self, targets: Targets, inputs: BlockInputs) -> None:
        tables = []
        for index in range(len(inputs)):
            pairs = targets.pairs(index)
            gradients = inputs.output_gradients(index, [pair.output for pair in pairs])
            sizes = [
                torch.stack([_size(gradient), _size(pair.output - pair.target)])
                for gradient, pair in zip(gradients, pairs, strict=True)
            ]
            tables.append(torch.stack(sizes))
            inputs.tick()
        rows = mean_over_ranks(tables, inputs, dims=3)  # (branches, 2, C)
        self.add(rows[:, 0], rows[:, 1])

    def add(self, gradients: Tensor, errors: Tensor) -> None:
        """Add a row to G and to E of every branch, (branches, C) each."""
        self.gradients.append(gradients)
        self.errors.append(errors)
        rows = torch.stack(self.errors, dim=1).double()
        gram = rows @ rows.transpose(1, 2)
        # rows that hardly differ would make the inverse of float32 numbers one of their rounding
        self.inverse = torch.linalg.pinv(gram, rtol=1e-6, hermitian=True)

    def terms(self, pair: Pair, branch: int, index: int) -> list[Tensor]:
        rows = torch.stack([gradients[branch] for gradients in self.gradients])
        # in units of their mean: what is left of tiny gradients must not vanish in float32
        rows = rows / rows.mean().clamp(min=torch.finfo(rows.dtype).tiny)
        inverse = self.inverse[branch] * self.errors[0][branch].mean().double().square()
        error = (pair.output - pair.target).abs()
        projected = error @ rows.t()
        low_rank = ((projected @ inverse.to(error)) * projected).sum(-1).mean()
        return [low_rank, (error.square() * rows.mean(0)).mean()]


class PerturbationHessian(BlockLoss):
    """APHQ-ViT (CVPR 2025): squared errors weighed by how much the gradients change when the output is moved a little.

    h = |g(z + e) - g(z - e)|, of mean 1 in every image, at the float output z; the term is mean((z^ - z)^2 h).

    Args:
        step: e.
    """

    weights = (2.0,)

    def __init__(self, step: float) -> None:
        self.step = step
        self.curvatures: TensorList | None = None

    def passes(self, steps: int) -> int:
        return 1

    def renew(self, targets: Targets, inputs: BlockInputs) -> None:
        self.curvatures = inputs.store()
        for index in range(len(inputs)):
            target = targets.stores[0][index]
            above, below = inputs.output_gradients(index, [target + self.step, target - self.step])
            curvature = (above - below).abs()
            size = curvature.mean()
            # no gradient arrives where no map depends on the block
            self.curvatures.append(curvature / size if size > 0 else torch.ones_like(curvature))
            inputs.tick()

    def terms(self, pair: Pair, branch: int, index: int) -> list[Tensor]:
        assert self.curvatures is not None
        return [((pair.output - pair.target).square() * self.curvatures[index]).mean()]


class GlobalAndLocal(BlockLoss):
    """GLF-Q (2026): the error of the whole model's results through its float rest, and twice the block's own.

    The whole model's loss is known by its gradients alone, which are exact. Its value, by which the term is put into
    units, is taken as half the gradient times the error: right where the loss is a square of what is linear [ours].
    """

    weights = (1.0, 2.0)

    def __init__(self) -> None:
        self.gradients_of: Callable[..., list[Tensor]] | None = None

    def renew(self, targets: Targets, inputs: BlockInputs) -> None:
        self.gradients_of = inputs.output_gradients

    def terms(self, pair: Pair, branch: int, index: int) -> list[Tensor]:
        assert self.gradients_of is not None
        output = pair.output
        (gradient,) = self.gradients_of(index, [output.detach()])
        value = ((output.detach() - pair.target) * gradient).sum().abs() / 2
        # the value, with the gradient of the whole model's loss
        through = value + (gradient * (output - output.detach())).sum()
        return [through, F.mse_loss(*pair)]


def _size(x: Tensor) -> Tensor:
    """Mean |x| of every channel, (..., C) to (C,)."""
    return x.abs().flatten(0, -2).mean(0)
