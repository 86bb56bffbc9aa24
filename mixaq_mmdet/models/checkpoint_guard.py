"""Refuses files that do not fit a TwoBranchSwin, inside loading itself, so that every entry point is protected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from mixaq_mmdet.quantization.state import INTEGER_HEADER

MAX_MISSING_SHARE = 0.01
OUTPUT_NORM = re.compile(r'norm\d+\.')
BLOCK = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.')
QUANTIZER_FLAGS = ('.calibrated', '.folded')


def refuse_foreign_weights(
    backbone: nn.Module, stock_names: Iterable[str], state_dict: dict[str, Any], prefix: str
) -> None:
    """Raise a ValueError if blocks or stock parameters differ in number or size, or over 1 % of the latter are missing.

    Output norms may be missing: classification files have none.

    Args:
        backbone: the TwoBranchSwin that is about to load.
        stock_names: its parameters that a stock Swin has too.
        state_dict: what it loads.
        prefix: where the backbone is in it, e.g. 'backbone.'.
    """
    own = dict(backbone.named_parameters())
    expected = {name: own[name] for name in stock_names if name in own}
    there, here = _depths(state_dict, prefix), _depths(own)
    wrong = [f'depths: {there} in the file, {here} in the model'] if there and there != here else []
    wrong += [
        f'{name}: {tuple(state_dict[prefix + name].shape)} in the file, {tuple(parameter.shape)} in the model'
        for name, parameter in expected.items()
        if prefix + name in state_dict and state_dict[prefix + name].shape != parameter.shape
    ]
    if wrong:
        raise ValueError(
            'the checkpoint is of another architecture; make embed_dims, depths, num_heads, window_size and mlp_ratio '
            f'of the backbone those of the file. What differs: {_shortened(wrong)}'
        )
    needed = [name for name in expected if not OUTPUT_NORM.match(name)]
    missing = [name for name in needed if prefix + name not in state_dict]
    if len(missing) > MAX_MISSING_SHARE * len(needed):
        raise ValueError(
            f'the checkpoint lacks {len(missing)} of {len(needed)} backbone parameters; convert files of other '
            f'code bases with tools/convert_checkpoint.py. Missing: {_shortened(missing)}'
        )


def refuse_integers(state_dict: dict[str, Any], prefix: str) -> None:
    """Raise a ValueError if a converted file is loaded where only a simulated or float model can be.

    Args:
        state_dict: what the backbone loads.
        prefix: where the backbone is in it, e.g. 'backbone.'.
    """
    if prefix + INTEGER_HEADER in state_dict:
        raise ValueError(
            'this is a converted file, which holds integers: use the config that tools/deploy.py convert wrote beside '
            'it (integer.py for integer.pth), or give this config the calibrated checkpoint'
        )


def refuse_quantizer_state(state_dict: dict[str, Any], prefix: str) -> None:
    """Raise a ValueError if weights for a float backbone were calibrated, whether or not their config is still there.

    Args:
        state_dict: what the backbone loads.
        prefix: where the backbone is in it, e.g. 'backbone.'.
    """
    flags = [key for key in state_dict if key.startswith(prefix) and key.endswith(QUANTIZER_FLAGS)]
    found = [key for key in flags if bool(state_dict[key])]
    if found:
        raise ValueError(
            'the checkpoint holds a quantized backbone without its quant_config, but model.backbone.quant is absent: '
            'its weights mean nothing without their quantizers; load a float checkpoint, or a quantized one as it was '
            f'saved. Found: {_shortened(found)}'
        )


def _depths(names: Iterable[str], prefix: str = '') -> tuple[int, ...]:
    """Blocks of each stage, as far as names of parameters tell."""
    found = [BLOCK.match(name, len(prefix)) for name in names if name.startswith(prefix)]
    blocks = [(int(match[1]), int(match[2])) for match in found if match]
    stages = range(1 + max((stage for stage, _ in blocks), default=-1))
    return tuple(1 + max((block for number, block in blocks if number == stage), default=-1) for stage in stages)


def _shortened(lines: list[str], most: int = 5) -> str:
    return '; '.join(lines[:most]) + (f'; and {len(lines) - most} more' if len(lines) > most else '')
