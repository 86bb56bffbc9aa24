"""Conversion of a calibrated model in memory: a new model of the same classes that computes with integers."""

from __future__ import annotations

import copy
from typing import Any

from mmdet.models.detectors import BaseDetector
from torch import nn

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.quant_detector import forget_head_method
from mixaq_mmdet.quantization.layers import QuantWeight

from .convert import convert_layers
from .integer_detector import become_integer, fill
from .integer_swin import IntegerSwin
from .state import HEADER
from .table import Table

WALK = ('stride', 'padding', 'dilation', 'groups', 'padding_mode')


def convert_model(model: nn.Module, engine: str = 'auto', high: str = 'int8') -> nn.Module:
    """A new integer model; ``model`` stays as it was.

    Args:
        model: a calibrated detector (or other model) whose ``backbone`` is a TwoBranchSwin, or such a backbone alone.
            If neck and heads are quantized (``QuantDetector``), they convert, too.
        engine: what runs the backbone: 'auto', or an engine by name; 'torch' runs neck and heads as well.
        high: what high windows run as, 'int8' or 'bf16'.

    Returns:
        The same classes on a CPU, in eval mode, with an :class:`IntegerSwin` as backbone.

    Raises:
        ValueError: for a model that is not quantized, was converted before, or cannot be converted.
        NotCalibratedError: for one that is not calibrated.
    """
    if isinstance(model, TwoBranchSwin):
        return IntegerSwin.of(model, engine, high)
    backbone: Any = getattr(model, 'backbone', None)
    if backbone is None:
        raise ValueError(f'{type(model).__name__} has no backbone to convert; give a detector, or a TwoBranchSwin')
    replaced: dict[int, Any] = {id(backbone): IntegerSwin.of(backbone, engine, high)}
    if not isinstance(model, BaseDetector):
        return copy.deepcopy(model, replaced).cpu().eval()
    rows, kept = convert_layers(model)
    for path, layer in model.named_modules():
        if isinstance(layer, QuantWeight) and not path.startswith('backbone.'):
            replaced[id(layer)] = stock_layer(layer, empty=path not in kept)
    twin: Any = copy.deepcopy(model, replaced)
    forget_head_method(twin)
    become_integer(twin, 'torch' if engine == 'torch' else 'auto')
    twin.register_buffer(HEADER, rows[HEADER])
    fill(twin, Table(rows))
    return twin.cpu().eval()


def stock_layer(layer: Any, empty: bool) -> nn.Module:
    """The stock layer of a quantized one: without memory, or with the quantized weight."""
    options: dict[str, Any] = {'bias': layer.bias is not None, 'device': 'meta' if empty else 'cpu'}
    if isinstance(layer, nn.Linear):
        stock: Any = nn.Linear(layer.in_features, layer.out_features, **options)
    elif isinstance(layer, nn.ConvTranspose2d):
        kernel: Any = layer.kernel_size
        stock = nn.ConvTranspose2d(layer.in_channels, layer.out_channels, kernel, kernel, **options)
    else:
        options.update({name: getattr(layer, name) for name in WALK})
        stock = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, **options)
    if not empty:
        stock.weight.data.copy_(layer.from_source(layer.quantized_weight()).detach())
        if layer.bias is not None:
            stock.bias.data.copy_(layer.bias.detach())
    return stock.requires_grad_(False)
