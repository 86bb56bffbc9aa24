"""What the methods share that search grids in rounds for the least error of what layers and attention products give."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from torch import nn

from ..output_samples import Samples, sampled_modules
from ..output_search import OutputSearch, searches
from ..quantizers.base import Quantizer
from .base import BlockInputs, Method

Refinement = Callable[[OutputSearch], None]
"""Sets the grid of one quantizer anew, while those of the others are held."""


class SearchedMethod(Method):
    """Base of these methods: after their own calibration, weight and inputs of each module take turns.

    Attributes:
        rounds: of the search; 0 for none.
    """

    rounds: int

    @abstractmethod
    def sampled(self, block: nn.Module, inputs: BlockInputs) -> Samples:
        """The rows of each module of the block that errors are measured on."""

    @abstractmethod
    def refinement(self, quantizer: Quantizer) -> Refinement | None:
        """How a round searches this quantizer's grid; None if it stays. Asked before the first round."""

    def calibrate(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        noise = super().calibrate(block, inputs)
        if self._searches_outputs(block):
            for search in searches(self.sampled(block, inputs), inputs.average):
                self._search_module(search)
                noise.update(search.noise())
        return noise

    def calibration_steps(self, block: nn.Module, images: int) -> int:
        return super().calibration_steps(block, images) + (images if self._searches_outputs(block) else 0)

    def _searches_outputs(self, block: nn.Module) -> bool:
        return self.rounds > 0 and bool(sampled_modules(block))

    def _search_module(self, search: OutputSearch) -> None:
        weight = search.weight()
        refinements = [self.refinement(q) for q in ([] if weight is None else [weight]) + search.activations()]
        for _ in range(self.rounds):
            for refine in refinements:
                if refine is not None:
                    refine(search)
        if weight is not None:
            search.module.unfreeze()
