"""ERQ (ICML 2024): the errors of activations and of weights are answered by ridge regression, without training.

On top of RepQ's ranges and fold (here patch merging is folded, too, as RepQ does), each Linear of a block or of patch
merging is solved by itself. First its weight and bias answer the error of its quantized inputs (Aqer). Then the weight
grid is fitted anew and the columns are rounded, half of those left at a time; the others make up for the error (Wqer).
The math is in ``quantization/error_reduction.py``. The paper has one branch; here both share the weight, and their
inputs count by the share of the windows that each is taken to have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.checks import check_count, check_number

from ...registry import QUANT_METHODS
from ..blocks import FoldingBlock
from ..error_reduction import InputMoments, RowGrid, mean_moments, reduce_activation_error, reduce_weight_error
from ..layers import BranchQuantizers, QuantLinear, Split
from ..quantizers.base import quantizer_mode
from ..quantizers.uniform import UniformQuantizer
from .base import BlockInputs
from .repq import RepQ

PUBLISHED_TOKENS = 32 * 14 * 14
"""Of 32 images of 224x224 at stride 16: what the published strengths of the ridges, which are sums, belong to."""


@QUANT_METHODS.register_module()
class ERQ(RepQ):
    """Post-training quantization of ERQ, for both branches.

    Args:
        ridge: strength against changes by activation error, as published: for the tokens of 32 images of 224x224 at
            stride 16. It grows in proportion to the tokens that there are.
        rounding_ridge: the same against changes by the rounding of weights.
        refinements: most passes that move weights of a row to their other neighbour on the grid; 0 rounds to nearest.
        low_share: share of the windows that the weights are solved for as low ones; the paper has none.
    """

    quantizes_heads = False

    def __init__(
        self,
        ridge: float = 2000.0,
        rounding_ridge: float = 0.1,
        refinements: int = 100,
        low_share: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ridge = check_number(ridge, 'quant.ridge', usual=2000, above=True)
        self.rounding_ridge = check_number(rounding_ridge, 'quant.rounding_ridge', usual=0.1, above=True)
        self.refinements = check_count(refinements, 'quant.refinements')
        self.low_share = check_number(low_share, 'quant.low_share', 0, 1, usual=0.5)

    def needs_bias(self, module_path: str) -> bool:
        return True

    def calibrate(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        layers = _solved_layers(block)
        self._check_first(layers)
        noise = super().calibrate(block, inputs)
        if layers:
            moments = observe_moments(block, inputs, layers)
            for layer, branches in zip(layers, moments, strict=True):
                self._solve(layer, *mean_moments(branches, self.low_share))
        return noise

    def calibration_steps(self, block: nn.Module, images: int) -> int:
        return super().calibration_steps(block, images) + (images if _solved_layers(block) else 0)

    @torch.no_grad()
    def _solve(self, layer: QuantLinear, gram: Tensor, cross: Tensor) -> None:
        """Set weight, bias and weight grid of a layer from the mean moments of its inputs."""
        strength = self.ridge / PUBLISHED_TOKENS
        weight, bias = reduce_activation_error(layer.weight, layer.bias, gram, cross, strength)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        self.fit_weights(layer)
        quantizer = layer.weight_quant
        if not isinstance(quantizer, UniformQuantizer):
            return
        rows = layer.out_features
        scale, zero_point = (t.double().expand(rows)[:, None] for t in (quantizer.scale, quantizer.zero_point))
        grid = RowGrid(scale, zero_point, quantizer.bits)
        strength = self.rounding_ridge / PUBLISHED_TOKENS
        weight, bias = reduce_weight_error(layer.weight, layer.bias, gram, grid, strength, self.refinements)
        # float32 values of the codes themselves, so that quantizing them again is exact
        layer.weight.copy_(quantizer(weight.float()))
        layer.bias.copy_(bias)
        layer.unfreeze()


@torch.no_grad()
def observe_moments(
    block: nn.Module, inputs: BlockInputs, layers: Sequence[QuantLinear]
) -> list[dict[str, InputMoments]]:
    """Moments of each layer's inputs by branch, over the images of all ranks, while the block runs in float."""
    moments = [
        {name: InputMoments(layer.in_features, layer.weight.device) for name in _branch_names(layer)}
        for layer in layers
    ]
    with quantizer_mode(block, 'float'), _listening(layers, moments):
        inputs.replay(block)
    inputs.average(tensor for branches in moments for m in branches.values() for tensor in m.sums())
    return moments


@contextmanager
def _listening(layers: Sequence[QuantLinear], moments: Sequence[dict[str, InputMoments]]) -> Iterator[None]:
    """Add what enters each layer to its moments, as long as this lasts."""
    with ExitStack() as stack:
        for layer, branches in zip(layers, moments, strict=True):

            def add(layer: Any, args: tuple[Any, ...], branches: dict[str, InputMoments] = branches) -> None:
                _add_inputs(layer, branches, *args)

            stack.callback(layer.register_forward_pre_hook(add).remove)
        yield


def _add_inputs(layer: QuantLinear, branches: dict[str, InputMoments], x: Tensor, split: Split | None = None) -> None:
    with quantizer_mode(layer.input_quant, 'quantize'):
        quantized = layer.input_quant(x, split)
    high = len(x) if split is None or 'low' not in branches else split.high
    # what attention makes of padding tokens is dropped, but their keys and values count
    keeps = isinstance(layer.input_quant, BranchQuantizers) and layer.input_quant.keep_padding
    real = None if split is None or keeps else split.real
    for name, part in (('high', slice(high)), ('low', slice(high, None))):
        if name in branches:
            chosen = [t[part].flatten(0, -2) if real is None else t[part][real[part]] for t in (quantized, x)]
            branches[name].add(*chosen)


def _branch_names(layer: QuantLinear) -> list[str]:
    quantizers = layer.input_quant
    return list(quantizers.branches()) if isinstance(quantizers, BranchQuantizers) else ['high']


def _solved_layers(block: nn.Module) -> list[QuantLinear]:
    """The Linear layers of a two-branch block or of patch merging."""
    if not isinstance(block, FoldingBlock):
        return []
    return [layer for layer in block.modules() if isinstance(layer, QuantLinear)]
