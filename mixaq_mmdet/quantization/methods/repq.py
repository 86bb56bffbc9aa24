"""RepQ-ViT (arXiv 2212.08254): scale reparameterisation after LayerNorm and log-sqrt2 attention, without training.

LayerNorm outputs are calibrated per channel (s_c, z_c) and folded into a per-tensor grid (section 3.2):
s~ = mean s_c, z~ = round(mean z_c), r = s_c / s~, b = s~ (z~ - z_c); the norm becomes gamma / r, beta / r - b and the
linear layer behind it W~ = W diag(r), bias~ = bias + W~ b. With the zero point rounded the fold is exact. Weights are
fitted a second time, to W~. Both branches share W and therefore (r, b), taken from the high branch; the low branch has
its own (s, z).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.checks import check_list, check_number

from ...registry import QUANT_METHODS
from ..blocks import Fold, FoldingBlock
from ..layers import BranchQuantizers, QuantLinear
from ..observers import MSERange, PercentileSearchRange, Samples
from ..quantizers.base import Quantizer, RangeFinder
from ..quantizers.uniform import UniformQuantizer
from ..roles import LAYER_NORM_ROLES, roles_of
from .base import BlockInputs, Method, activation_quantizers, observe

NARROWEST = 1e-3  # of the median step: the finest step a folded channel gets


@QUANT_METHODS.register_module()
class RepQ(Method):
    """Post-training quantization of RepQ-ViT, for both branches.

    Args:
        percentiles: shares tried at both ends of every range; the one of least squared error is kept.
    """

    def __init__(self, percentiles: Sequence[float] = (0.999, 0.9999, 0.99999), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.percentiles = check_list(percentiles, 'quant.percentiles', '[0.999, 0.9999, 0.99999]')
        if not self.percentiles:
            raise ValueError('quant.percentiles=[] leaves no range to try; [0.999, 0.9999, 0.99999] is usual')
        for share in self.percentiles:
            check_number(share, 'quant.percentiles', 0.5, 1, usual=[0.999, 0.9999, 0.99999], above=True)
        self._search = PercentileSearchRange(self.percentiles)

    def quantizer_config(self, role: str) -> dict[str, Any]:
        if role == 'attn':
            return {'type': 'LogSqrt2'}
        if role in LAYER_NORM_ROLES:
            return {**super().quantizer_config(role), 'observe_per_channel': True, 'include_zero': False}
        return super().quantizer_config(role)

    def range_finder(self, quantizer: Quantizer) -> RangeFinder:
        # with few bits the best range lies far inside the percentiles that the paper tries
        return MSERange() if quantizer.branch == 'low' else self._search

    def needs_bias(self, module_path: str) -> bool:
        return roles_of(module_path)[1] in LAYER_NORM_ROLES

    def adopt(self, backbone: nn.Module) -> None:
        start_padding(backbone)

    def calibrate(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        self.fit_weights(block)
        quantizers = activation_quantizers(block)
        samples = observe(block, inputs, quantizers)
        noise = {}
        for fold in _folds(block):
            noise.update(self._fold(fold, samples))
            self.fit_weights(fold.linear)
        for quantizer in quantizers:
            if quantizer.name not in noise:
                noise[quantizer.name] = self.fit(quantizer, samples[quantizer.name])
        return {quantizer.name: noise[quantizer.name] for quantizer in quantizers}

    def _check_first(self, layers: Iterable[nn.Module]) -> None:
        """Refuse layers that are calibrated: methods that changed the weights would take them for the float ones."""
        ready = [q.name for layer in layers for q in layer.modules() if isinstance(q, Quantizer) and q.ready]
        if ready:
            raise ValueError(
                f'{self.field}.method={self.name} has calibrated {ready[0]} already and changed its weights; '
                'load the float checkpoint and calibrate that'
            )

    def channel_ranges(self, seen: Samples, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Range of every channel of a LayerNorm output, (C,) low and (C,) high: what the common step is made from."""
        return self._search(seen, quantizer.simulate)

    def _fold(self, fold: Fold, samples: dict[str, Samples]) -> dict[str, float]:
        branches: dict[str, Any] = fold.linear.input_quant.branches()
        high = branches['high']
        seen = samples[high.name]
        low_end, high_end = self.channel_ranges(seen, high)
        scale, zero_point = high.parameters_for(low_end, high_end)
        common_scale, common_zero, ratio, shift = reparameterise(scale, zero_point, low_end, high_end)
        fold_into(fold, ratio, shift)
        high.set_grid(common_scale, common_zero)
        if 'low' in branches:
            self._fit_low(branches['low'], high, samples[branches['low'].name], fold.linear, ratio, shift)
        noise = {}
        for quantizer in branches.values():
            seen = samples[quantizer.name]
            folded = seen.values / ratio[:, None] - shift[:, None]
            folded = quantizer(folded.to(quantizer.scale.device)).cpu()
            noise[quantizer.name] = seen.sqnr((folded + shift[:, None]) * ratio[:, None])
        return noise

    @staticmethod
    def _fit_low(
        low: UniformQuantizer, high: UniformQuantizer, seen: Samples, linear: QuantLinear, ratio: Tensor, shift: Tensor
    ) -> None:
        """The low grid: it starts with the high one's range and is refined on what the low windows hold.

        The error of a channel counts by its weights' squares: what it does to the layer's output.
        """
        values = seen.values / ratio[:, None] - shift[:, None]
        weights = seen.counts * linear.weight.detach().double().cpu().square().sum(0)[:, None]
        start_low, start_high = (end.cpu().view(1) for end in high.ends())
        pooled = Samples.pooled(values, weights)
        samples = Samples(pooled.values, pooled.counts, start_low, start_high)
        low.fit(samples, MSERange())


def start_padding(backbone: nn.Module) -> None:
    """Give blocks whose norms may be folded a value of padding tokens, zero to begin with."""
    for block in backbone.modules():
        for fold in block.folds() if isinstance(block, FoldingBlock) else ():
            if fold.padded is not None:
                fold.padded.pad_value = torch.zeros(fold.norms[0].normalized_shape)


def reparameterise(
    scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Common scale and zero point of per-channel ones, and the ratio and shift that take each channel there.

    A channel that is constant, or nearly, far from zero has a zero point of millions: it would take every channel's
    shift out of float32's precision. Such channels get a coarser grid and have no say in the common one.

    Args:
        scale: (C,) step per channel.
        zero_point: (C,) whole numbers.
        low: (C,) lower end of each channel's range.
        high: (C,) upper end.
    """
    floor = NARROWEST * scale[high > low].median() if bool((high > low).any()) else scale.new_tensor(0.0)
    narrow = (scale < floor) | (high <= low)
    coarse = torch.maximum(scale, floor)
    zero_point = torch.where(coarse > scale, torch.round(-low / coarse), zero_point)
    voting = ~narrow if bool((~narrow).any()) else torch.ones_like(narrow)
    common_scale = coarse[voting].mean()
    common_zero = torch.round(zero_point[voting].mean())
    return common_scale, common_zero, coarse / common_scale, common_scale * (common_zero - zero_point)


@torch.no_grad()
def fold_into(fold: Fold, ratio: Tensor, shift: Tensor) -> None:
    """Move ratio and shift out of the norms into the linear layer, in float64."""
    linear = fold.linear
    ratio, shift = (value.double().to(linear.weight.device) for value in (ratio, shift))
    for norm in fold.norms:
        norm.bias.copy_(norm.bias.double() / ratio - shift)
        norm.weight.copy_(norm.weight.double() / ratio)
    weight = linear.weight.double() * ratio
    linear.bias.copy_(linear.bias.double() + weight @ shift)
    linear.weight.copy_(weight)
    linear.folded.fill_(1)
    if fold.padded is not None and fold.padded.pad_value is not None:
        # what an earlier fold put there is folded like any token
        fold.padded.pad_value.copy_(fold.padded.pad_value.double() / ratio - shift)


def _folds(block: nn.Module) -> list[Fold]:
    """The norms of a block that feed a layer with a per-tensor uniform input quantizer."""
    folds = block.folds() if isinstance(block, FoldingBlock) else []
    return [fold for fold in folds if _is_foldable(fold.linear)]


def _is_foldable(linear: nn.Module) -> bool:
    if not isinstance(linear, QuantLinear) or not isinstance(linear.input_quant, BranchQuantizers):
        return False
    return all(isinstance(q, UniformQuantizer) and q.axis is None for q in linear.input_quant.branches().values())
