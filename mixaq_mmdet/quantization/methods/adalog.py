"""AdaLog (ECCV 2024): logarithmic grids of an adaptive base, and a progressive search of all others.

Attention probabilities and what GELU gives are quantized on powers of a base that is searched; the second is moved up
by GELU's minimum first. LayerNorm outputs are folded as RepQ does. Every other step and zero point is searched, first
for the least error of the tensor, then in rounds, weight and inputs in turn, for that of what its layer or attention
product gives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.checks import check_count, check_flag, check_positive

from ...registry import QUANT_METHODS
from ..adaptive_log import BASES, adaptive_errors
from ..coarse_to_fine import Progressive, ProgressiveRange, first_steps
from ..observers import Samples, Simulate
from ..output_samples import Samples as SampledModules
from ..output_samples import sample_inputs
from ..output_search import OutputSearch
from ..quantizers.adaptive import AdaptiveLogQuantizer
from ..quantizers.base import Quantizer, RangeFinder
from ..quantizers.uniform import UniformQuantizer
from .base import BlockInputs
from .repq import RepQ
from .searched import Refinement, SearchedMethod

FIRST_STEPS = 8
FIRST_SHARES = (0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2)
"""Of the present step: where the search by a layer's output begins."""
NEAR_BASES = 4


@QUANT_METHODS.register_module()
class AdaLog(SearchedMethod, RepQ):
    """Post-training quantization of AdaLog, for both branches.

    Args:
        log_gelu: an adaptive logarithmic grid for what GELU gives; otherwise a uniform one.
        keep: candidates that survive a round of the search by the tensor's own error.
        expansions: rounds of it.
        rounds: of the search by the output's error, weight and inputs in turn; 0 for none.
        output_keep: as ``keep``, there.
        output_expansions: as ``expansions``, there.
        rows: sampled for it from every image and branch: tokens, or as many windows as hold them.
    """

    def __init__(
        self,
        log_gelu: bool = True,
        keep: int = 16,
        expansions: int = 5,
        rounds: int = 3,
        output_keep: int = 2,
        output_expansions: int = 2,
        rows: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.log_gelu = check_flag(log_gelu, 'quant.log_gelu')
        self.keep = check_positive(keep, 'quant.keep', 16)
        self.expansions = check_count(expansions, 'quant.expansions')
        self.rounds = check_count(rounds, 'quant.rounds')
        self.output_keep = check_positive(output_keep, 'quant.output_keep', 2)
        self.output_expansions = check_count(output_expansions, 'quant.output_expansions')
        self.rows = check_positive(rows, 'quant.rows', 32)
        self._own = Progressive(self.keep, self.expansions)
        self._by_output = Progressive(self.output_keep, self.output_expansions)

    def quantizer_config(self, role: str) -> dict[str, Any]:
        if role == 'attn' or (role == 'fc2_in' and self.log_gelu):
            return {'type': 'AdaptiveLog'}
        return super().quantizer_config(role)

    def range_finder(self, quantizer: Quantizer) -> RangeFinder:
        if isinstance(quantizer, UniformQuantizer):
            return ProgressiveRange(quantizer.bits, self._own)
        if isinstance(quantizer, AdaptiveLogQuantizer) and quantizer.role == 'attn':
            return _probabilities
        return super().range_finder(quantizer)

    def fit(self, quantizer: Quantizer, samples: Samples) -> float:
        if not isinstance(quantizer, AdaptiveLogQuantizer) or quantizer.role == 'attn':
            return super().fit(quantizer, samples)
        fit_scale_and_base(quantizer, samples.together(), self._own)
        return samples.together().sqnr(quantizer.values_of(samples.together()))

    def sampled(self, block: nn.Module, inputs: BlockInputs) -> SampledModules:
        return sample_inputs(block, inputs, self.rows)

    def refinement(self, quantizer: Quantizer) -> Refinement | None:
        if isinstance(quantizer, UniformQuantizer):
            return lambda search: search_steps(search, quantizer, self._by_output)
        if isinstance(quantizer, AdaptiveLogQuantizer):
            return lambda search: search.choose(quantizer, _near(quantizer))
        return None


@torch.no_grad()
def fit_scale_and_base(quantizer: AdaptiveLogQuantizer, samples: Samples, search: Progressive) -> None:
    """Scale and base of least squared error, searched jointly: every base with some scales, then finer scales."""
    values = quantizer.shifted(samples)
    moved = Samples(values, samples.counts, samples.low + quantizer.shift, samples.high + quantizer.shift)
    scales = first_steps(moved, FIRST_STEPS)
    bases = torch.tensor(BASES)
    grid = scales.repeat_interleave(len(bases), 0), bases.repeat(len(scales))[:, None]

    def errors_of(scales: Tensor, bases: Tensor) -> Tensor:
        return adaptive_errors(values, samples.counts, scales, bases, quantizer.bits)

    width = (scales[-1] - scales[0]) / (FIRST_STEPS - 1)
    scale, base = search(errors_of, *grid, width)
    quantizer.set_grid(scale.view(()), base.view(()))


@torch.no_grad()
def search_steps(search: OutputSearch, quantizer: UniformQuantizer, how: Progressive) -> None:
    """Step and zero point of a uniform grid, around the present ones, by the error of the output."""
    error = search.error_of(quantizer)
    shares = torch.tensor(FIRST_SHARES).to(quantizer.scale)
    moves = [0.0] if quantizer.symmetric else [-1.0, 0.0, 1.0]
    rows = quantizer.scale.reshape(-1)
    zeros = quantizer.zero_point.reshape(-1)
    scales = torch.stack([rows * share for share in shares for _ in moves])
    others = torch.stack([zeros + move for _ in shares for move in moves])
    if quantizer.include_zero:
        others = others.clamp(0, 2**quantizer.bits - 1)

    def errors_of(scales: Tensor, zero_points: Tensor) -> Tensor:
        found = []
        for grid in zip(scales, zero_points, strict=True):
            quantizer.set_grid(*(values.view(quantizer.shape) for values in grid))
            found.append(error().view(-1))
        return torch.stack(found)

    width = rows * (FIRST_SHARES[3] - FIRST_SHARES[2])
    best = how(errors_of, scales, others, width, search.average)
    quantizer.set_grid(*(values.view(quantizer.shape) for values in best))


def _near(quantizer: AdaptiveLogQuantizer) -> list[tuple[Tensor, ...]]:
    """Candidates: of probabilities every base; else those near the present one, with scales around it."""
    if quantizer.role == 'attn':
        return [(quantizer.scale.clone(), torch.tensor(base)) for base in BASES]
    present = int(quantizer.base)
    bases = [base for base in range(present - NEAR_BASES, present + NEAR_BASES + 1) if base in BASES]
    return [(quantizer.scale * share, torch.tensor(base)) for share in FIRST_SHARES for base in bases]


def _probabilities(samples: Samples, simulate: Simulate) -> tuple[Tensor, Tensor]:
    """Probabilities go up to 1."""
    return torch.zeros_like(samples.low), torch.ones_like(samples.high)
