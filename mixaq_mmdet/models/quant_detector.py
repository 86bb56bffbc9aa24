"""QuantDetector: quantizes a detector's neck and heads, so that the whole detector is in scope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors import DetectionTransformer, MaskFormer
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from mixaq_mmdet.quantization import (
    DETECTOR_BUFFER,
    Method,
    build_method,
    check_head_options,
    check_overrides,
    check_saved_config,
    encode_config,
    methods_that,
    replace_layers,
)

from .kept_float import tell_kept_float
from .two_branch_swin import TwoBranchSwin

PARTS = ('neck', 'rpn_head', 'roi_head', 'bbox_head')
ATTENTION_HEADS = (DetectionTransformer, MaskFormer)
"""Detectors of the DETR family: their heads are attention, which has no roles here."""


@MODELS.register_module(name='QuantDetector')
def build_quant_detector(
    base: str | type | None = None, detector_quant: Mapping[str, Any] | None = None, **model: Any
) -> nn.Module:
    """Build detector ``base`` and replace the Linear and Conv2d layers of its neck, RPN and heads.

    This is a function and not a class, so classes and module paths stay those of the stock detector. The heads of
    DETR-family detectors stay float, and so do deconvolutions without ``deconvolution=True``. If the backbone is a
    TwoBranchSwin, one of its buffers holds the config, and a detector without quantizers refuses the file.

    Args:
        base: type of the detector, e.g. 'MaskRCNN', or its class, as in pure Python configs.
        detector_quant: like ``quant`` of the backbone; override patterns are paths in the detector (``roi_head.*``).
        **model: the other keys of the detector's config.
    """
    is_class = isinstance(base, type) and issubclass(base, nn.Module)
    if not is_class and (not isinstance(base, str) or MMDET_MODELS.get(base) is None):
        raise ValueError(
            f"model.base={base!r} is not a detector that mmdet knows; give its type, such as base='MaskRCNN'"
        )
    if detector_quant is None:
        raise ValueError(
            "model.detector_quant is missing; give a method, such as detector_quant=dict(method='RepQ', w_bits=4, "
            'a_bits=8), or quantize the backbone alone with its stock detector as model.type'
        )
    build_head_method(detector_quant)  # what is wrong in it shall not wait for the detector
    detector = MMDET_MODELS.build({'type': base, **model})
    quantize_heads(detector, detector_quant)
    return detector


def build_head_method(config: Mapping[str, Any], field: str = 'detector_quant') -> Method:
    """As ``build_method``; one that quantizes backbones alone is a ValueError."""
    method = build_method(config, field)
    if not method.quantizes_heads:
        raise ValueError(
            f'{field}.method={method.name} quantizes backbones alone; use one of {methods_that("quantizes_heads")} for '
            'neck, RPN and heads, or leave them float'
        )
    return method


def quantize_heads(detector: Any, detector_quant: Mapping[str, Any]) -> None:
    """Put quantizers into the Linear and Conv2d layers of a float detector's neck, RPN and heads."""
    method = build_head_method(detector_quant)
    attention_heads = isinstance(detector, ATTENTION_HEADS)
    offered = ('neck',) if attention_heads else PARTS
    parts = tuple(part for part in offered if isinstance(getattr(detector, part, None), nn.Module))
    if attention_heads:
        name, quantized = type(detector).__name__, ', '.join(parts) or 'none'
        print_log(f'QuantDetector: the heads of {name} stay float, quantized are: {quantized}', 'current')
    elif not parts:
        name = type(detector).__name__
        raise ValueError(f'{name} has none of {list(PARTS)} to quantize; quantize its backbone alone')
    paths = [path for part in parts for path in replace_layers(getattr(detector, part), method, part)]
    tell_kept_float(method)
    check_overrides(method, paths)
    check_head_options(method, detector)
    detector.detector_quant_method = method
    guarded = isinstance(detector.backbone, TwoBranchSwin)
    carrier = detector.backbone if guarded else detector
    carrier.register_buffer(DETECTOR_BUFFER, encode_config(method.config))
    if not guarded:
        detector.register_load_state_dict_pre_hook(_check_detector)


def head_method(model: nn.Module) -> Method | None:
    """The method that :func:`quantize_heads` gave a detector; None for other models."""
    return vars(model).get('detector_quant_method')


def forget_head_method(detector: nn.Module) -> None:
    """Undo what :func:`quantize_heads` noted on a detector; its layers and its backbone have been replaced again."""
    vars(detector).pop('detector_quant_method', None)
    if DETECTOR_BUFFER in dict(detector.named_buffers(recurse=False)):
        delattr(detector, DETECTOR_BUFFER)


def _check_detector(detector: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    check_saved_config(detector, state_dict, prefix, DETECTOR_BUFFER)
