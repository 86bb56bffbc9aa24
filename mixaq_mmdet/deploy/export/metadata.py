"""What an exported file says about itself: all that a program without torch needs to feed it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.version import __version__

FORMAT = 'mixaq_mmdet.onnx'


def describe(model: Any, backbone: Any, shape: tuple[int, int], cfg: Any = None, **facts: Any) -> dict[str, str]:
    """Strings by key; what is no text is JSON.

    Args:
        model: detector or bare backbone.
        backbone: its backbone.
        shape: (H, W) of the input.
        cfg: config, for the test pipeline and its name; None where there is none.
        **facts: written as they are.
    """
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    normalises = getattr(preprocessor, '_enable_normalize', False)
    found: dict[str, Any] = {
        'format': FORMAT,
        'version': __version__,
        'shape': list(shape),
        'mean': preprocessor.mean.flatten().tolist() if normalises else [0.0, 0.0, 0.0],
        'std': preprocessor.std.flatten().tolist() if normalises else [1.0, 1.0, 1.0],
        'to_rgb': bool(getattr(preprocessor, '_channel_conversion', False)),
        'pad_divisor': getattr(preprocessor, 'pad_size_divisor', 1),
        'classes': list((getattr(model, 'dataset_meta', None) or {}).get('classes') or []),
        'resize': resize_of(cfg),
        'mask_threshold': _mask_threshold(model),
        **facts,
    }
    if cfg is not None and cfg.get('filename'):
        found['config'] = str(cfg.filename).replace('\\', '/').rsplit('/', 1)[-1]
    if isinstance(backbone, TwoBranchSwin):
        found['low_ratios'], found['prune_ratios'] = list(backbone.low_ratios), list(backbone.prune_ratios)
        found['windows'] = window_counts(backbone, shape)
        found['bits'] = bits_of(backbone)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def add_metadata(model: Any, **facts: int) -> None:
    """Tell an ``onnx.ModelProto`` more about itself."""
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(value))


def bits_of(backbone: Any) -> dict[str, Any]:
    """Method and bits of a quantized backbone; empty for a float one."""
    method = backbone.quant_method if isinstance(backbone, TwoBranchSwin) else None
    if method is None:
        return {}
    low = method.a_bits if method.low_a_bits is None else method.low_a_bits
    return {'method': method.name, 'w_bits': method.w_bits, 'a_bits': method.a_bits, 'low_a_bits': low}


@torch.no_grad()
def window_counts(backbone: TwoBranchSwin, shape: tuple[int, int]) -> list[list[int]]:
    """High, low and pruned windows of each block pair."""
    with backbone.record_windows() as records:
        backbone(torch.zeros(1, 3, *shape))
    return [list(counts) for record in records for counts in record.counts]


def resize_of(cfg: Any) -> dict[str, Any] | None:
    """Scale and kind of the test pipeline's Resize; None where nothing is resized."""
    for name in ('test_dataloader', 'val_dataloader'):
        dataset: Any = (cfg or {}).get(name) or {}
        dataset = dataset.get('dataset')
        while isinstance(dataset, Mapping):
            if 'pipeline' in dataset:
                return _resize(dataset['pipeline'])
            dataset = dataset.get('dataset')
    return None


def _resize(pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    for step in pipeline:
        if step.get('type') in ('Resize', 'FixShapeResize') and step.get('scale') is not None:
            return {'scale': list(step['scale']), 'keep_ratio': bool(step.get('keep_ratio', False))}
    return None


def _mask_threshold(model: Any) -> float:
    rcnn = (getattr(model, 'test_cfg', None) or {}).get('rcnn') or {}
    return float(rcnn.get('mask_thr_binary', 0.5))
