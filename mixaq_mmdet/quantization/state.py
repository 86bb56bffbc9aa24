"""The quantization config as a buffer, so that it travels in checkpoints, and the comparison when one is loaded.

A buffer survives what other carriers do not: ``weights_only`` loading, EMA copies, DDP's first broadcast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.checks import plain
from mixaq_mmdet.registry import QUANT_METHODS

CONFIG_BUFFER = 'quant_config'
DETECTOR_BUFFER = 'detector_quant_config'
INTEGER_HEADER = 'integer_header'
"""The table of a converted model, which only ``deploy`` reads."""
_LOW_BITS = '.low.bit_width'
_FIELDS = {CONFIG_BUFFER: 'model.backbone.quant', DETECTOR_BUFFER: 'model.detector_quant'}


def encode_config(config: Mapping[str, Any]) -> Tensor:
    """JSON of a config as a uint8 tensor."""
    text = json.dumps(plain(config), sort_keys=True, default=list)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def decode_config(encoded: Tensor) -> dict[str, Any]:
    """Undo :func:`encode_config`."""
    return dict(json.loads(bytes(encoded.cpu().tolist()).decode()))


def check_saved_config(module: nn.Module, state_dict: dict[str, Any], prefix: str, buffer: str = CONFIG_BUFFER) -> None:
    """Refuse a quantized file in a float module, and one of another config; called while ``module`` loads.

    A float file in a quantized module is the normal start: it gets the module's own config and stays uncalibrated. So
    does a file of an equal config, whose text may be another.
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
            f'the {buffer!r} of the checkpoint is damaged; take an earlier one, or calibrate again'
        ) from error
    if present is None:
        raise ValueError(
            f'the checkpoint holds a quantized model, but {field} is absent: its weights mean nothing without their '
            f'quantizers; set {_advice(there, state_dict, prefix, buffer)}'
        )
    ours, theirs = (_resolved(config, buffer) for config in (decode_config(present), there))
    if ours != theirs:
        keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        differing = ', '.join(f'{key}={ours.get(key)!r} (checkpoint: {theirs.get(key)!r})' for key in keys)
        raise ValueError(
            f'{field} differs from what the checkpoint was quantized with: {differing}; '
            f'use {_advice(there, state_dict, prefix, buffer)} and calibrate it'
        )
    state_dict[key] = present


def _resolved(config: dict[str, Any], buffer: str) -> dict[str, Any]:
    """The config with all that it leaves to defaults spelled out: equal ones mean the same.

    Those are the bits of the low branch, which heads have none of, and what files of earlier versions do not name.
    """
    low = config.get('low_a_bits')
    if buffer == DETECTOR_BUFFER or low is None:
        low = config.get('a_bits')
    return {**_earlier(config), **config, 'low_a_bits': low}


def _earlier(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a method's classes say of options that files of earlier versions do not name; the nearest class wins."""
    method = QUANT_METHODS.get(config.get('method'))
    classes = [] if method is None else reversed(method.__mro__)
    return {option: value for cls in classes for option, value in vars(cls).get('earlier', {}).items()}


def _advice(config: dict[str, Any], state_dict: Mapping[str, Any], prefix: str, buffer: str) -> str:
    """What to do instead: the config of the file, as a user may write it.

    Files of earlier versions hold a number where ``low_a_bits`` follow ``a_bits``, which low quantizers of more bits
    give away, and for heads, which have no low branch.
    """
    low, overrides = config.get('low_a_bits'), config.get('overrides', ())
    follows = buffer == DETECTOR_BUFFER
    if low is not None and low == config.get('a_bits') and not any('low_a_bits' in each for each in overrides):
        own = (value for name, value in state_dict.items() if name.startswith(prefix) and name.endswith(_LOW_BITS))
        follows = follows or any(int(bits) > low for bits in own)
    written = {**_earlier(config), **config, **({'low_a_bits': None} if follows else {})}
    return f'{_FIELDS[buffer]}={written}, or load a float checkpoint'
