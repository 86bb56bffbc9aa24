"""Search of grids for the least error of what a layer or an attention product gives, on sampled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import BranchQuantizers, QuantMatmul
from .output_samples import Samples, Weighted
from .quantizers.base import Quantizer

Average = Callable[[Iterable[Tensor]], None]
Grid = tuple[Tensor, ...]
"""Arguments of a quantizer's ``set_grid``."""


class Term:
    """A product on the sampled inputs of one call: left (..., M, K) times right (..., K, N), each perhaps quantized."""

    def __init__(self, module: Any, weighted: Weighted) -> None:
        sample = weighted.sample
        self.branch, self.left, self.importance = sample.branch, sample.left, weighted.importance
        if isinstance(module, QuantMatmul):
            self.quantize_left, self.quantize_right = (
                _of_branch(operand, sample.branch) for operand in module.operands.values()
            )
            assert sample.right is not None
            self.right = sample.right
            self.transposed = False
        else:
            self.quantize_left, self.quantize_right = _of_branch(module.input_quant, sample.branch), module.weight_quant
            self.right = module.weight.detach().clone()
            self.transposed = True
        self.target = self.product(self.left, self.right)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """``right`` is a weight (N, ...) of a layer."""
        return left @ (right.flatten(1).t() if self.transposed else right)

    def error(self, left: Tensor, right: Tensor, by_column: bool = False) -> Tensor:
        """Sum of weighed squared errors of the product, 0-d or, of a layer, (N,); float64."""
        off = self.product(left, right) - self.target
        squares = (off if self.importance is None else off * self.importance).square_().double()
        return squares.flatten(0, -2).sum(0) if by_column else squares.sum()


class OutputSearch:
    """The quantizers of one module, searched on its sampled inputs.

    Args:
        module: a quantized layer, or a product; its grids are fitted.
        samples: what it read.
        average: merges errors over ranks, in place.
    """

    def __init__(self, module: Any, samples: Sequence[Weighted], average: Average) -> None:
        self.module = module
        self.average = average
        branches = dict.fromkeys(weighted.sample.branch for weighted in samples)
        self.terms = [Term(module, _together([w for w in samples if w.sample.branch == b])) for b in branches]

    def activations(self) -> list[Quantizer]:
        """Activation quantizers whose grid is for the whole tensor."""
        inputs = self.module.operands.values() if isinstance(self.module, QuantMatmul) else [self.module.input_quant]
        branches = [q for each in inputs if isinstance(each, BranchQuantizers) for q in each.branches().values()]
        return [q for q in branches if q.axis is None]

    def weight(self) -> Quantizer | None:
        """The weight quantizer of a layer."""
        quantizer = getattr(self.module, 'weight_quant', None)
        return quantizer if isinstance(quantizer, Quantizer) else None

    @torch.no_grad()
    def error_of(self, quantizer: Quantizer) -> Callable[[], Tensor]:
        """A function that gives the error with the quantizer's present grid, of its shape; other grids are held."""
        by_column = quantizer.axis is not None
        held = []
        for term in self.terms:
            if quantizer is term.quantize_left:
                held.append((term, None, term.quantize_right(term.right)))
            elif quantizer is term.quantize_right:
                held.append((term, term.quantize_left(term.left), None))

        def error() -> Tensor:
            total = torch.zeros(quantizer.shape, dtype=torch.float64, device=quantizer.calibrated.device)
            for term, left, right in held:
                left = quantizer(term.left) if left is None else left
                right = quantizer(term.right) if right is None else right
                total += term.error(left, right, by_column)
            return total

        return error

    @torch.no_grad()
    def choose(self, quantizer: Any, candidates: Sequence[Grid]) -> None:
        """Give the quantizer the candidate of least error, channel by channel where it has channels."""
        error, errors = self.error_of(quantizer), []
        for grid in candidates:
            quantizer.set_grid(*grid)
            errors.append(error())
        stacked = torch.stack(errors)
        self.average([stacked])
        best = stacked.argmin(0, keepdim=True)
        chosen = (torch.stack([torch.as_tensor(v) for v in values]) for values in zip(*candidates, strict=True))
        quantizer.set_grid(*(values.to(best.device).gather(0, best)[0] for values in chosen))

    @torch.no_grad()
    def noise(self) -> dict[str, float]:
        """Signal to quantization noise in dB of the activation quantizers on the samples, by name."""
        found = {}
        for quantizer in self.activations():
            sums = torch.zeros(2, dtype=torch.float64)
            for term in self.terms:
                for side, x in ((term.quantize_left, term.left), (term.quantize_right, term.right)):
                    if side is quantizer:
                        signal, off = x.double(), (quantizer(x) - x).double()
                        sums += torch.stack([signal.square().sum(), off.square().sum()]).cpu()
            self.average([sums])
            signal, noise = sums.clamp(min=1e-30)
            found[quantizer.name] = float(10 * torch.log10(signal / noise))
        return found


def searches(samples: Samples, average: Average) -> list[OutputSearch]:
    """A search for each module."""
    return [OutputSearch(module, found, average) for module, found in samples.items()]


def _together(samples: Sequence[Weighted]) -> Weighted:
    """Samples of one branch as one."""
    first, rest = samples[0].sample, [weighted.sample for weighted in samples]
    left = torch.cat([sample.left for sample in rest])
    right = None if first.right is None else torch.cat([s.right for s in rest if s.right is not None])
    importance = None
    if any(weighted.importance is not None for weighted in samples):
        importance = torch.cat([_weights(weighted) for weighted in samples])
    return Weighted(first._replace(left=left, right=right), importance)


def _weights(weighted: Weighted) -> Tensor:
    """Of every output, (rows, N) or (windows, heads, M, N)."""
    sample, importance = weighted
    whole = sample.left.new_ones(sample.shape)
    return whole if importance is None else whole * importance


def _of_branch(quantizers: Any, branch: str) -> nn.Module:
    if not isinstance(quantizers, BranchQuantizers):
        return quantizers
    return quantizers.branches().get(branch, quantizers.high)
