"""Quantizers for a detector that is built and loaded already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.models.backbones.swin import SwinTransformer
from mmengine.model import is_model_wrapper
from torch import nn

from mixaq_mmdet.quantization import BranchQuantizers, QuantWeight, build_method

from .from_stock import to_two_branch
from .quant_detector import PARTS, build_head_method, quantize_heads
from .two_branch_swin import TwoBranchSwin


def swin_backbone(model: Any) -> SwinTransformer:
    """The Swin backbone of a detector, or the model itself if it is one."""
    backbone = getattr(model, 'backbone', model)
    if not isinstance(model, nn.Module) or not isinstance(backbone, SwinTransformer):
        raise ValueError(
            f'model is {type(model).__name__} without a SwinTransformer of mmdet as backbone; give a detector on Swin, '
            'or such a backbone'
        )
    return backbone


def is_converted(backbone: Any) -> bool:
    """Whether a backbone computes with integers."""
    return isinstance(backbone, TwoBranchSwin) and backbone.stored_bits is not None


def quantize_model(model: Any, quant: Mapping[str, Any], whole: bool = False) -> Any:
    """Put quantizers into the backbone and, for a ``whole`` detector, into neck, RPN and heads; in place.

    Args:
        model: a float detector, or a bare backbone.
        quant: method, bits and options; those of the backbone alone are not asked of the heads.
        whole: quantize neck, RPN and heads too.
    """
    if isinstance(model, nn.Module) and is_model_wrapper(model):
        raise ValueError(f'model is wrapped by {type(model).__name__}; quantize model.module before it is wrapped')
    backbone = swin_backbone(model)
    if any(isinstance(module, QuantWeight | BranchQuantizers) for module in model.modules()):
        raise ValueError('model has quantizers already; quantize a float model (mixaq_mmdet.load makes a fresh one)')
    if is_converted(backbone):
        raise ValueError('model is converted to integers; quantize a float model')
    if whole and backbone is model:
        raise ValueError("scope='detector' needs a detector, and model is a bare backbone; use scope='backbone'")
    overrides = list(quant.get('overrides') or [])
    of_heads = [override for override in overrides if whole and _names_heads(override)]
    of_backbone = [override for override in overrides if override not in of_heads]
    own = {**quant, **({'overrides': of_backbone} if overrides else {})}
    heads = {**quant, **({'overrides': of_heads} if overrides else {})}
    method = build_method(own, 'quant')  # an error leaves the model as it is
    if whole:
        for option in method.backbone_options:
            heads.pop(option, None)
        for option in method.head_options:
            own.pop(option, None)
        build_head_method(heads, 'quant')
    device, training = next(backbone.parameters()).device, backbone.training
    two_branch = backbone if isinstance(backbone, TwoBranchSwin) else to_two_branch(backbone)
    two_branch.quantize(own)
    if whole:
        quantize_heads(model, heads)
    two_branch.train(training)
    return model.to(device)


def _names_heads(override: Any) -> bool:
    pattern = override.get('pattern') if isinstance(override, Mapping) else None
    return isinstance(pattern, str) and pattern.split('.')[0] in PARTS
