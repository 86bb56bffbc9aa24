"""From quantizers to plain numbers: weights as codes, activation grids as header entries and tensors.

Three kinds of weights are integers times a step per row: uniform (codes - zero point), learned (LSQ, the same without a
range), and StatsQ, whose values S (q + 1/2) / n are odd numbers 2 q + 1 times S / 2 n: codes count in twos.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixaq_mmdet.quantization import methods_that
from mixaq_mmdet.quantization.functional import quantize
from mixaq_mmdet.quantization.layers import BranchQuantizers, QuantWeight
from mixaq_mmdet.quantization.learned_grid import MIN_STEP
from mixaq_mmdet.quantization.observers import as_rows
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.quantization.quantizers.learned import LearnedQuantizer
from mixaq_mmdet.quantization.quantizers.logarithmic import Log2Quantizer
from mixaq_mmdet.quantization.quantizers.statistic import StatisticQuantizer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

BRANCHES = ('high', 'low')


class WeightCodes(NamedTuple):
    """A weight w = (stride * codes - zero_point) * scale.

    Attributes:
        codes: 0 .. 2^bits - 1, of the weight's shape.
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
    weight, rows = layer.weight.detach().float(), layer.weight.shape[0]
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


def pick_branch(quantizers: Any, branch: str) -> Quantizer | None:
    """The quantizer of a branch, the high one where there is no other; None where the tensor stays float."""
    if not isinstance(quantizers, BranchQuantizers):
        return None
    return quantizers.branches().get(branch, quantizers.high)


def describe_grid(quantizer: Quantizer | None, path: str, role: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An activation grid: its header entry - scale, zero point, bits, steps per octave (0: uniform) - and its tensors.

    Tensors are ``steps`` (tokens,), the factor of the scale at each token position of a window, and ``before`` and
    ``after`` (channels,): x^ = (clip(round((x + before) / step) + zero_point) - zero_point) step + after.

    Raises:
        ValueError: for a grid that is none of these.
    """
    tensors: dict[str, Tensor] = {}
    zero_point, steps_per_octave = 0, 0
    if isinstance(quantizer, UniformQuantizer) and quantizer.axis is None:
        zero_point, scale = int(quantizer.zero_point), float(quantizer.scale)
    elif isinstance(quantizer, Log2Quantizer) and role == 'attn':
        scale, steps_per_octave = float(quantizer.scale), quantizer.steps_per_octave
    elif isinstance(quantizer, LearnedQuantizer) and quantizer.axis is None and _fits(quantizer, role):
        zero_point, step = -quantizer.lowest, quantizer.step.detach().float().clamp(min=MIN_STEP)
        scale = 1.0 if quantizer.per_token else float(step)
        offsets = {'before': quantizer.before, 'after': quantizer.after}
        tensors = {'steps': step} if quantizer.per_token else {}
        tensors.update({name: value.detach().float() for name, value in offsets.items() if value is not None})
    else:
        raise ValueError(
            f'{path}: {role} is {_kind(quantizer)}, which has no integer form here; convert models of {_methods()}, '
            'with per-tensor activation grids and without enabled=False overrides'
        )
    entry = {'scale': scale, 'zero_point': zero_point, 'bits': quantizer.bits, 'steps_per_octave': steps_per_octave}
    return {**entry, 'tensors': {name: list(value.shape) for name, value in tensors.items()}}, tensors


def _fits(quantizer: LearnedQuantizer, role: str) -> bool:
    """Probabilities must keep exact zeros: no offsets there."""
    return role != 'attn' or (quantizer.before is None and quantizer.unsigned)


def _methods() -> str:
    return ', '.join(sorted(methods_that('converts')))


def _kind(quantizer: Any) -> str:
    return type(quantizer).__name__ if isinstance(quantizer, Quantizer) else 'float'
