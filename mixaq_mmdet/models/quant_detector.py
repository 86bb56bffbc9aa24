"""QuantDetector: quantizes a detector's neck and heads, so that the whole detector is in scope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from mixaq_mmdet.quantization import (
    DETECTOR_BUFFER,
    build_method,
    check_overrides,
    check_saved_config,
    encode_config,
    replace_layers,
)

from .kept_float import tell_kept_float
from .two_branch_swin import TwoBranchSwin

PARTS = ('neck', 'rpn_head', 'roi_head', 'bbox_head')
FLOAT_HEADS = ('encoder', 'decoder', 'panoptic_head')
"""Where a detector has one of these, it is of the DETR family: its heads are attention, which has no roles here."""


@MODELS.register_module(name='QuantDetector')
def build_quant_detector(
    base: str | type | None = None, detector_quant: Mapping[str, Any] | None = None, **model: Any
) -> nn.Module:
    """Build detector ``base`` and replace the Linear and Conv2d layers of its neck, RPN and heads.

    A function, not a class: classes and module paths stay stock. Deconvolutions stay float, and so do the heads of
    DETR-family detectors. The config travels in a buffer of the backbone if that is a TwoBranchSwin: then a plain
    detector refuses the file.

    Args:
        base: type of the detector, e.g. 'MaskRCNN', or its class, as in pure Python configs.
        detector_quant: as ``quant`` of the backbone; override patterns are paths in the detector (``roi_head.*``).
        **model: the other keys of the detector's config.
    """
    is_class = isinstance(base, type) and issubclass(base, nn.Module)
    if not is_class and (not isinstance(base, str) or MMDET_MODELS.get(base) is None):
        raise ValueError(f"model.base={base!r} is no detector that mmdet knows; give its type, such as base='MaskRCNN'")
    if detector_quant is None:
        raise ValueError(
            "model.detector_quant is missing; give a method, such as detector_quant=dict(method='RepQ', w_bits=4, "
            'a_bits=8), or quantize the backbone alone with its stock detector as model.type'
        )
    method = build_method(detector_quant, 'detector_quant')
    detector = MMDET_MODELS.build({'type': base, **model})
    attention_heads = any(hasattr(detector, name) for name in FLOAT_HEADS)
    parts = ('neck',) if attention_heads else PARTS
    parts = tuple(part for part in parts if isinstance(getattr(detector, part, None), nn.Module))
    if attention_heads:
        name, quantized = type(detector).__name__, ', '.join(parts) or 'none'
        print_log(f'QuantDetector: the heads of {name} stay float, quantized are: {quantized}', 'current')
    elif not parts:
        raise ValueError(f'base={base!r} has none of {list(PARTS)} to quantize; quantize its backbone alone')
    paths = [path for part in parts for path in replace_layers(getattr(detector, part), method, part)]
    tell_kept_float(method)
    check_overrides(method, paths)
    detector.detector_quant_method = method
    guarded = isinstance(detector.backbone, TwoBranchSwin)
    carrier = detector.backbone if guarded else detector
    carrier.register_buffer(DETECTOR_BUFFER, encode_config(method.config))
    if not guarded:
        detector.register_load_state_dict_pre_hook(_check_detector)
    return detector


def _check_detector(detector: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    check_saved_config(detector, state_dict, prefix, DETECTOR_BUFFER)
