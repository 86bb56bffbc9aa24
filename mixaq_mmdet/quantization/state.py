"""The quantization config as a buffer, so that it travels in checkpoints, and the comparison when one is loaded.

A buffer survives what other carriers do not: ``weights_only`` loading, EMA copies, DDP's first broadcast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

CONFIG_BUFFER = 'quant_config'
DETECTOR_BUFFER = 'detector_quant_config'
_FIELDS = {CONFIG_BUFFER: 'model.backbone.quant', DETECTOR_BUFFER: 'model.detector_quant'}


def encode_config(config: Mapping[str, Any]) -> Tensor:
    """JSON of a config as a uint8 tensor."""
    text = json.dumps(config, sort_keys=True, default=_plain)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def decode_config(encoded: Tensor) -> dict[str, Any]:
    """Undo :func:`encode_config`."""
    return json.loads(bytes(encoded.cpu().tolist()).decode())


def check_saved_config(module: nn.Module, state_dict: dict[str, Any], prefix: str, buffer: str = CONFIG_BUFFER) -> None:
    """Refuse a quantized file in a float module, and one of another config; called while ``module`` loads.

    A float file in a quantized module is the normal start: it gets the module's own config and stays uncalibrated.
    """
    field, key = _FIELDS[buffer], prefix + buffer
    present, saved = getattr(module, buffer, None), state_dict.get(key)
    if saved is None:
        if present is not None:
            state_dict[key] = present
        return
    try:
        there = decode_config(saved)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'the {buffer!r} of the checkpoint is damaged; take an earlier one, or calibrate anew'
        ) from error
    if present is None:
        raise ValueError(
            f'the checkpoint holds a quantized model, but {field} is absent: its weights mean nothing without their '
            f'quantizers; set {field}={there}, or load a float checkpoint'
        )
    here = decode_config(present)
    if here != there:
        keys = sorted(key for key in {*here, *there} if here.get(key) != there.get(key))
        differing = ', '.join(f'{key}={here.get(key)!r} (checkpoint: {there.get(key)!r})' for key in keys)
        raise ValueError(
            f'{field} differs from what the checkpoint was quantized with: {differing}; use {field}={there}, or load a '
            'float checkpoint and calibrate it'
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value)
