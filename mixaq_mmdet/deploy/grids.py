"""From quantizers to plain numbers: weights as codes, activation grids as header entries and tensors.

Three kinds of weights are integers times a step per row: uniform (codes - zero point), learned (LSQ, the same without a
range), and StatsQ, whose values S (q + 1/2) / n are odd numbers 2 q + 1 times S / 2 n: codes count in twos.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixaq_mmdet.quantization import methods_that
from mixaq_mmdet.quantization.adaptive_log import RESOLUTION
from mixaq_mmdet.quantization.functional import quantize
from mixaq_mmdet.quantization.layers import BranchQuantizers, QuantWeight
from mixaq_mmdet.quantization.learned_grid import MIN_STEP
from mixaq_mmdet.quantization.observers import as_rows
from mixaq_mmdet.quantization.quantizers.adaptive import AdaptiveLogQuantizer
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.quantization.quantizers.learned import LearnedQuantizer
from mixaq_mmdet.quantization.quantizers.logarithmic import Log2Quantizer
from mixaq_mmdet.quantization.quantizers.noisy import NoisyQuantizer
from mixaq_mmdet.quantization.quantizers.statistic import StatisticQuantizer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer


class WeightCodes(NamedTuple):
    """A weight w = (stride * codes - zero_point) * scale.

    Attributes:
        codes: 0 .. 2^bits - 1, of the shape that the quantizer sees.
        scale: (rows,) float32.
        zero_point: (rows,) whole numbers.
        stride: 1, or 2 for StatsQ.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    stride: int


@torch.no_grad()
def weight_codes(layer: Any, path: str) -> WeightCodes:
    """The codes of a quantized layer's weight.

    Raises:
        ValueError: for a weight that is no integer times a step per row.
    """
    quantizer = layer.weight_quant if isinstance(layer, QuantWeight) else None
    weight = (layer.source_weight if isinstance(layer, QuantWeight) else layer.weight).detach().float()
    rows = len(weight)
    if isinstance(quantizer, UniformQuantizer):
        codes = quantize(weight, quantizer.scale, quantizer.zero_point, quantizer.bits, quantizer.axis)
        return WeightCodes(codes, quantizer.scale.expand(rows), quantizer.zero_point.expand(rows), 1)
    if isinstance(quantizer, LearnedQuantizer) and quantizer.before is None:
        step = quantizer.step.detach().float().clamp(min=MIN_STEP).expand(rows)
        scaled = weight / step.view(-1, *[1] * (weight.dim() - 1))
        codes = scaled.clamp(quantizer.lowest, quantizer.highest).round().int() - quantizer.lowest
        return WeightCodes(codes, step, torch.full((rows,), -quantizer.lowest), 1)
    if isinstance(quantizer, StatisticQuantizer):
        levels = 2 ** (quantizer.bits - 1)
        mean = as_rows(weight, quantizer.axis).abs().mean(1)
        scale = ((2 * mean).clamp(min=torch.finfo(torch.float32).tiny) / levels).expand(rows)
        steps = quantizer(weight) / scale.view(-1, *[1] * (weight.dim() - 1))
        codes = (steps - 0.5).round().int() + levels
        return WeightCodes(codes, scale / 2, torch.full((rows,), 2 * levels - 1), 2)
    raise ValueError(
        f'{path}: the weight is {_kind(quantizer)}, which has no integer form; convert models of {_methods()}, '
        'without enabled=False overrides'
    )


def branches_of(quantizers: Any) -> dict[str, Quantizer | None]:
    """The quantizers of a tensor by branch; None where it stays float."""
    return dict(quantizers.branches()) if isinstance(quantizers, BranchQuantizers) else {'high': None}


def describe_grid(quantizer: Quantizer | None, path: str, role: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An activation grid: its header entry - scale, zero point, bits, steps per octave (0: uniform) - and its tensors.

    Tensors are ``steps`` (tokens,), the factor of the scale at each token position of a window, or ``channel_steps``
    (channels,), and ``before`` and ``after`` (channels,):
    x^ = (clip(round((x + before) / step) + zero_point) - zero_point) step + after.
    Logarithmic grids of an adaptive base have ``levels`` (2^bits + 1,), the value of each code for a scale of 1.

    Raises:
        ValueError: for a grid that is none of these.
    """
    tensors: dict[str, Tensor] = {}
    zero_point = 0
    steps_per_octave: float = 0  # whole but for adaptive bases
    if isinstance(quantizer, UniformQuantizer) and quantizer.axis is None:
        zero_point, scale = int(quantizer.zero_point), float(quantizer.scale)
        if isinstance(quantizer, NoisyQuantizer) and quantizer.noisy:
            tensors = {'before': quantizer.noise, 'after': -quantizer.noise}
    elif isinstance(quantizer, Log2Quantizer) and role == 'attn':
        scale, steps_per_octave = float(quantizer.scale), quantizer.steps_per_octave
    elif isinstance(quantizer, AdaptiveLogQuantizer):
        scale, steps_per_octave = float(quantizer.scale), RESOLUTION / int(quantizer.base)
        tensors = {'levels': quantizer.levels}
        if quantizer.shift:
            shift = torch.full((quantizer.channels,), quantizer.shift)
            tensors.update(before=shift, after=-shift)
    elif isinstance(quantizer, LearnedQuantizer) and _fits(quantizer, role):
        zero_point, step = -quantizer.lowest, quantizer.step.detach().float().clamp(min=MIN_STEP)
        kind = 'steps' if quantizer.per_token else None if quantizer.axis is None else 'channel_steps'
        scale = 1.0 if kind else float(step)
        offsets = {'before': quantizer.before, 'after': quantizer.after}
        tensors = {kind: step} if kind else {}
        tensors.update({name: value.detach().float() for name, value in offsets.items() if value is not None})
    else:
        raise ValueError(
            f'{path}: {role} is {_kind(quantizer)}, which has no integer form here; convert models of {_methods()}, '
            'with per-tensor activation grids and without enabled=False overrides'
        )
    entry = {'scale': scale, 'zero_point': zero_point, 'bits': quantizer.bits, 'steps_per_octave': steps_per_octave}
    return {**entry, 'tensors': {name: list(value.shape) for name, value in tensors.items()}}, tensors


def _fits(quantizer: LearnedQuantizer, role: str) -> bool:
    """Whether steps lie along no sum, as those by channel do but for values, and probabilities keep exact zeros."""
    if role == 'attn' and (quantizer.before is not None or not quantizer.unsigned):
        return False
    return quantizer.axis is None or role == 'v'


def _methods() -> str:
    return ', '.join(sorted(methods_that('converts')))


def _kind(quantizer: Any) -> str:
    return type(quantizer).__name__ if isinstance(quantizer, Quantizer) else 'float'
