"""Refuses files that do not fit a TwoBranchSwin, inside loading itself, so that every entry point is protected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

MAX_MISSING_SHARE = 0.01
OUTPUT_NORM = re.compile(r'norm\d+\.')


def refuse_foreign_weights(
    backbone: nn.Module, stock_names: Iterable[str], state_dict: dict[str, Any], prefix: str
) -> None:
    """Raise a ValueError if stock parameters differ in size or more than 1 % of them are missing.

    Output norms may be missing: classification files have none.

    Args:
        backbone: the TwoBranchSwin that is about to load.
        stock_names: its parameters that a stock Swin has too.
        state_dict: what it loads.
        prefix: where the backbone is in it, e.g. 'backbone.'.
    """
    own = dict(backbone.named_parameters())
    expected = {name: own[name] for name in stock_names if name in own and not OUTPUT_NORM.match(name)}
    wrong = [
        f'{name}: {tuple(state_dict[prefix + name].shape)} in the file, {tuple(parameter.shape)} in the model'
        for name, parameter in expected.items()
        if prefix + name in state_dict and state_dict[prefix + name].shape != parameter.shape
    ]
    if wrong:
        raise ValueError(
            'the checkpoint is of another architecture; make embed_dims, depths, num_heads, window_size and mlp_ratio '
            f'of the backbone those of the file. Sizes that differ: {_shortened(wrong)}'
        )
    missing = [name for name in expected if prefix + name not in state_dict]
    if len(missing) > MAX_MISSING_SHARE * len(expected):
        raise ValueError(
            f'the checkpoint lacks {len(missing)} of {len(expected)} backbone parameters; convert files of other '
            f'code bases with tools/convert_checkpoint.py. Missing: {_shortened(missing)}'
        )


def _shortened(lines: list[str], most: int = 5) -> str:
    return '; '.join(lines[:most]) + (f'; and {len(lines) - most} more' if len(lines) > most else '')
