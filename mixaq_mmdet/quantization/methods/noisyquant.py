"""NoisyQuant (CVPR 2023): a fixed noise in front of a layer's uniform grid, taken away behind it.

x^ = Q(x + N) - N with N = m + t e for each channel of a linear layer's input. First m is searched, then t, for the
least error of what the layer gives. Behind a LayerNorm N moves into its bias and W^ N out of the layer's: nothing is
left to do at run time. Elsewhere the quantizer keeps it; in integers its removal is part of the layer's bias.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from mixaq_mmdet.checks import check_count, check_flag, check_positive

from ...registry import QUANT_METHODS
from ..blocks import Fold, FoldingBlock
from ..functional import fake_quantize
from ..layers import QuantLinear
from ..output_samples import sample_inputs
from ..output_search import OutputSearch, searches
from ..quantizers.noisy import NoisyQuantizer
from ..quantizers.uniform import UniformQuantizer
from ..roles import LAYER_NORM_ROLES, roles_of
from .base import BlockInputs
from .mse import MSE
from .repq import start_padding

KEPT_ROLES = ('proj_in', 'fc2_in', 'head_in')
"""Inputs of linear layers that come from no LayerNorm: the quantizer keeps their noise."""


@QUANT_METHODS.register_module()
class NoisyQuant(MSE):
    """Post-training quantization of NoisyQuant, for both branches.

    Grids have the ranges of least squared error; convolutions and attention products have no noise.

    Args:
        shift_steps: values of m tried for each step of the grid, from one step down to one up.
        noise_steps: values of t tried for each step of the grid, up to two of them.
        code_parity: draw e as the released code does, 2 n - 1 with n normal; the paper's is uniform in [-1, 1].
        rows: tokens sampled from every image and branch.
        seed: of e.
    """

    def __init__(
        self,
        shift_steps: int = 20,
        noise_steps: int = 20,
        code_parity: bool = False,
        rows: int = 32,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.shift_steps = check_positive(shift_steps, 'quant.shift_steps', 20)
        self.noise_steps = check_positive(noise_steps, 'quant.noise_steps', 20)
        self.code_parity = check_flag(code_parity, 'quant.code_parity')
        self.rows = check_positive(rows, 'quant.rows', 32)
        self.seed = check_count(seed, 'quant.seed')

    def quantizer_config(self, role: str) -> dict[str, Any]:
        config = super().quantizer_config(role)
        return {**config, 'type': 'Noisy'} if role in KEPT_ROLES else config

    def needs_bias(self, module_path: str) -> bool:
        return roles_of(module_path)[1] in LAYER_NORM_ROLES

    def adopt(self, backbone: nn.Module) -> None:
        start_padding(backbone)

    def calibrate(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        for quantizer in block.modules():
            if isinstance(quantizer, NoisyQuantizer):
                quantizer.noise.zero_()  # of an earlier calibration
        noise = super().calibrate(block, inputs)
        if not self._searches(block):
            return noise
        folds = {fold.linear: fold for fold in block.folds()} if isinstance(block, FoldingBlock) else {}
        for search in searches(sample_inputs(block, inputs, self.rows), inputs.average):
            layer = search.module
            if not isinstance(layer, QuantLinear):
                continue
            quantizers = [q for q in search.activations() if isinstance(q, UniformQuantizer)]
            if layer in folds and quantizers:
                fold_noise(folds[layer], self._find(search, quantizers))
                continue
            for quantizer in quantizers:
                if isinstance(quantizer, NoisyQuantizer):
                    quantizer.noise.copy_(self._find(search, [quantizer]))
            noise.update(search.noise())
        return noise

    def calibration_steps(self, block: nn.Module, images: int) -> int:
        return super().calibration_steps(block, images) + (images if self._searches(block) else 0)

    @staticmethod
    def _searches(block: nn.Module) -> bool:
        return any(isinstance(layer, QuantLinear) for layer in block.modules())

    @torch.no_grad()
    def _find(self, search: OutputSearch, quantizers: list[UniformQuantizer]) -> Tensor:
        """(channels,) the noise that the quantizers of a layer's branches share."""
        step, channels = quantizers[0].scale, quantizers[0].channels
        generator = torch.Generator().manual_seed(self.seed + crc32(quantizers[0].name.encode()))
        direction = draw_direction(channels, generator, self.code_parity).to(step)
        # never half a step, which would put zeros, and what GELU makes nearly zero, on the border of two codes
        shares = (torch.arange(-self.shift_steps, self.shift_steps) + 0.5) / self.shift_steps
        shifts = [torch.full_like(direction, float(share * step)) for share in shares]
        # no shift first: it wins a tie
        shift = self._best(search, quantizers, [torch.zeros_like(direction), *shifts])
        shares = torch.arange(2 * self.noise_steps + 1) / self.noise_steps
        return self._best(search, quantizers, [shift + float(share * step) * direction for share in shares])

    @staticmethod
    def _best(search: OutputSearch, quantizers: list[UniformQuantizer], candidates: list[Tensor]) -> Tensor:
        terms = [(term, q) for q in quantizers for term in search.terms if term.quantize_left is q]
        errors = torch.zeros(len(candidates), dtype=torch.float64)
        for term, quantizer in terms:
            weight = term.quantize_right(term.right)
            for index, noise in enumerate(candidates):
                errors[index] += term.error(quantized_with(quantizer, term.left, noise), weight).cpu()
        search.average([errors])
        return candidates[int(errors.argmin())]


def draw_direction(channels: int, generator: torch.Generator, code_parity: bool = False) -> Tensor:
    """(channels,) e, uniform in [-1, 1]; as the released code draws it, 2 n - 1 with n normal."""
    draw = torch.randn if code_parity else torch.rand
    return 2 * draw(channels, generator=generator) - 1


def quantized_with(quantizer: UniformQuantizer, x: Tensor, noise: Tensor) -> Tensor:
    """(rows, channels) on a quantizer's grid behind a noise (channels,)."""
    return fake_quantize(x + noise, quantizer.scale, quantizer.zero_point, quantizer.bits) - noise


@torch.no_grad()
def fold_noise(fold: Fold, noise: Tensor) -> None:
    """Let the norms add a noise (channels,) and the layer behind take away what its quantized weight makes of it."""
    linear = fold.linear
    for norm in fold.norms:
        norm.bias.add_(noise.to(norm.bias))
    weight = linear.quantized_weight().double()
    linear.bias.copy_(linear.bias.double() - weight @ noise.double())
    linear.folded.fill_(1)
    if fold.padded is not None and fold.padded.pad_value is not None:
        fold.padded.pad_value.add_(noise.to(fold.padded.pad_value))
