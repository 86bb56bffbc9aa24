"""How a weight is rounded while its block is reconstructed: by a tensor that is trained in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from ..functional import along
from ..layers import QuantWeight
from ..quantizers.uniform import UniformQuantizer

WARM_UP = 0.2  # share of the steps without a price, as published
FIRST_POWER, LAST_POWER = 20.0, 2.0


class Rounding(ABC):
    """Base of the two ways.

    Args:
        layer: with a calibrated uniform weight quantizer, whose grid stays as it is.

    Attributes:
        trained: of the shape of what is quantized.
    """

    rate_falls: ClassVar[bool]
    """Whether the learning rate falls to zero; otherwise it stays."""

    def __init__(self, layer: QuantWeight) -> None:
        assert isinstance(layer.weight_quant, UniformQuantizer)
        self.layer = layer
        self.quantizer: UniformQuantizer = layer.weight_quant
        self.trained = self._first(layer.source_weight.detach())

    @abstractmethod
    def _first(self, weight: Tensor) -> Tensor:
        """What ``trained`` starts as."""

    @abstractmethod
    def weight(self) -> Tensor:
        """What the layer computes with, as it depends on ``trained``."""

    @abstractmethod
    def rounded(self) -> Tensor:
        """Values of the grid."""

    def price(self, progress: float) -> Tensor:
        """What is to be paid for weights between the values of the grid, summed over weights."""
        return self.trained.new_zeros(())

    @torch.no_grad()
    def finish(self) -> None:
        """Make the rounded values the layer's weight: quantizing them changes nothing."""
        self.layer.weight.copy_(self.layer.from_source(self.rounded()))


class AdaRound(Rounding):
    """AdaRound (arXiv 2004.10568): up or down, by h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1) between the two.

    v starts where the weight is what it was. 1 - |2h - 1|^power is the price of a weight; the power falls from 20 to 2,
    so that at first only weights close to a value of the grid are drawn to it.
    """

    rate_falls = False

    def _first(self, weight: Tensor) -> Tensor:
        scale, _ = self._grid(weight)
        steps = weight / scale
        self.floor = steps.floor()
        share = steps - self.floor
        return torch.logit((share + 0.1) / 1.2)

    def weight(self) -> Tensor:
        return self._values(self.share_up())

    def rounded(self) -> Tensor:
        return self._values((self.trained >= 0).to(self.trained.dtype))

    def price(self, progress: float) -> Tensor:
        if progress < WARM_UP:
            return super().price(progress)
        left = 1 - (progress - WARM_UP) / (1 - WARM_UP)
        power = LAST_POWER + (FIRST_POWER - LAST_POWER) * left
        return (1 - (2 * self.share_up() - 1).abs().pow(power)).sum()

    def share_up(self) -> Tensor:
        """h of every weight: 0 is down, 1 is up."""
        return (1.2 * self.trained.sigmoid() - 0.1).clamp(0, 1)

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        quantizer = self.quantizer
        return along(quantizer.scale, weight, quantizer.axis), along(quantizer.zero_point, weight, quantizer.axis)

    def _values(self, up: Tensor) -> Tensor:
        scale, zero_point = self._grid(up)
        levels = 2**self.quantizer.bits - 1
        return ((self.floor + up + zero_point).clamp(0, levels) - zero_point) * scale


class StraightThrough(Rounding):
    """The weight itself is trained, rounded to the nearest; its gradient passes through the rounding."""

    rate_falls = True

    def _first(self, weight: Tensor) -> Tensor:
        return weight.clone()

    def weight(self) -> Tensor:
        return self.quantizer(self.trained)

    def rounded(self) -> Tensor:
        return self.quantizer(self.trained)


ROUNDINGS: dict[str, type[Rounding]] = {cls.__name__: cls for cls in (AdaRound, StraightThrough)}
