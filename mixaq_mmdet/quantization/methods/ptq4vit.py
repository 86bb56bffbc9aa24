"""PTQ4ViT (ECCV 2022): twin uniform grids, and steps searched by output errors that gradients of the loss weigh.

Grids are symmetric, one step for each tensor. Attention probabilities and what GELU gives have two ranges. Steps are
tried between 0.01 and 1.2 of the full range's, weight and input in turn (both operands of an attention product), and
the one of least mean (g (O^ - O))^2 is kept; O is the output of the layer and g the gradient of the loss by it.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from mixaq_mmdet.checks import check_count, check_flag, check_positive

from ...registry import QUANT_METHODS
from ..observers import Samples
from ..output_samples import Samples as SampledModules
from ..output_samples import sample_with_gradients
from ..quantizers.base import Quantizer
from ..quantizers.twin import TwinQuantizer
from ..quantizers.uniform import UniformQuantizer
from .base import BlockInputs
from .searched import Refinement, SearchedMethod

SMALLEST, LARGEST = 0.01, 1.2


@QUANT_METHODS.register_module()
class PTQ4ViT(SearchedMethod):
    """Post-training quantization of PTQ4ViT, for both branches.

    The published gradient is that of a divergence from the float model's results, which is exactly zero there. Here it
    is taken where the block's output is moved to both sides.

    Args:
        w_per_channel: a weight step for each output channel; published is one for the layer.
        code_parity: twin grids as in the released code: ranges of probabilities are added, the positive step after GELU
            is no shift of the negative one.
        candidates: steps tried, less one.
        rounds: of the search.
        rows: sampled for it from every image and branch: tokens, or as many windows as hold them.
        seed: of the signs by which outputs are moved.
    """

    uses_gradients = True
    quantizes_heads = False
    converts = False

    def __init__(
        self,
        w_per_channel: bool = False,
        code_parity: bool = False,
        candidates: int = 100,
        rounds: int = 3,
        rows: int = 32,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(w_per_channel=w_per_channel, **kwargs)
        self.code_parity = check_flag(code_parity, 'quant.code_parity')
        self.candidates = check_positive(candidates, 'quant.candidates', 100)
        self.rounds = check_count(rounds, 'quant.rounds')
        self.rows = check_positive(rows, 'quant.rows', 32)
        self.seed = check_count(seed, 'quant.seed')
        self._highest: dict[str, Tensor] = {}

    def quantizer_config(self, role: str) -> dict[str, Any]:
        if role in ('attn', 'fc2_in'):
            return {'type': 'TwinSoftmax' if role == 'attn' else 'TwinGELU', 'code_parity': self.code_parity}
        per_channel = {'per_channel': self.w_per_channel} if role == 'weight' else {}
        return {'type': 'Uniform', 'symmetric': True, **per_channel}

    def fit(self, quantizer: Quantizer, samples: Samples) -> float:
        self._highest[quantizer.name] = samples.high.max()
        return super().fit(quantizer, samples)

    def sampled(self, block: nn.Module, inputs: BlockInputs) -> SampledModules:
        name = next(module.name for module in block.modules() if isinstance(module, Quantizer))
        generator = torch.Generator().manual_seed(self.seed + crc32(name.encode()))
        return sample_with_gradients(block, inputs, self.rows, generator)

    def refinement(self, quantizer: Quantizer) -> Refinement | None:
        grids = self._steps(quantizer)
        return (lambda search: search.choose(quantizer, grids)) if grids else None

    def _steps(self, quantizer: Quantizer) -> list[tuple[Tensor, ...]]:
        """Candidates around the present, full range."""
        if isinstance(quantizer, TwinQuantizer):
            return list(quantizer.candidates(self._highest[quantizer.name]))
        if not isinstance(quantizer, UniformQuantizer):
            return []
        half = 2 ** (quantizer.bits - 1)
        full = quantizer.scale * (half - 1) / (half - 0.5)
        shares = torch.linspace(SMALLEST, LARGEST, self.candidates + 1).tolist()
        return [(full * share, quantizer.zero_point.clone()) for share in shares]
