"""The state of a converted backbone: its header, and whether its tensors are those that the header announces.

The kernels read tensors by address, so that sizes are checked here, once, before anything is run.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

import torch
from torch import Tensor

FORMAT = 'mixaq_mmdet.integer_swin'
VERSION = 2  # 2: learned grids
HEADER = 'integer_header'
CONVERT_ANEW = 'run tools/deploy.py convert again'
BLOCK_LAYERS = ('qkv', 'proj', 'fc1', 'fc2')

Header = dict[str, Any]
State = dict[str, Tensor]


def write_header(header: Header) -> Tensor:
    """A header as a uint8 tensor, which checkpoints carry without pickled objects."""
    return torch.tensor(list(json.dumps(header).encode()), dtype=torch.uint8)


def read_header(state: State) -> Header:
    """The header of an integer state.

    Raises:
        ValueError: for a state that is none, or of a version that this package does not know.
    """
    if HEADER not in state:
        raise ValueError(
            'the checkpoint holds no integer backbone; run tools/deploy.py convert CONFIG CKPT -o FILE on it and load '
            'FILE, or use type="TwoBranchSwin"'
        )
    try:
        header = json.loads(bytes(state[HEADER].tolist()).decode())
        found, version = header.get('format'), int(header.get('version', 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'the header of the integer file cannot be read; {CONVERT_ANEW}') from error
    if found != FORMAT:
        raise ValueError(f'the integer file has format {found!r}, not {FORMAT!r}; {CONVERT_ANEW}')
    if version > VERSION:
        raise ValueError(
            f'the integer file has version {version}, this package knows up to {VERSION}; update mixaq_mmdet, or '
            f'{CONVERT_ANEW}'
        )
    return header


def check_tensors(header: Header, state: State) -> None:
    """Raise a ValueError that names the first tensor that is missing or not of the size the header gives it."""
    try:
        expected = expected_shapes(header)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'the header of the integer file is incomplete ({error}); {CONVERT_ANEW}') from error
    for name, shape in expected.items():
        if name not in state:
            raise ValueError(f'the integer file lacks {name!r}; {CONVERT_ANEW}')
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f'{name!r} of the integer file is {tuple(state[name].shape)}, its header says {shape}; {CONVERT_ANEW}'
            )


def expected_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of layers and blocks, by name."""
    layers, shapes = header['layers'], {}
    for path, entry in layers.items():
        rows = entry['shape'][0]
        shapes[f'{path}.codes'] = (-(-prod(entry['shape']) * entry['bits'] // 8),)
        shapes.update({f'{path}.{name}': (rows,) for name in ('scale', 'zero_point', 'bias')})
        if 'grid' in entry:
            shapes.update(_grid_shapes(f'{path}.input.high', entry['grid']))
    for path, entry in header['blocks'].items():
        channels = layers[f'{path}.proj']['shape'][0]
        tokens = entry['tokens']
        for norm in ('norm1', 'norm2'):
            shapes.update({f'{path}.{norm}.{name}': (2, channels) for name in ('weight', 'bias')})
        shapes[f'{path}.position_bias'] = (entry['heads'], tokens, tokens)
        shapes[f'{path}.pad_qkv'] = (3 * channels,)
        for branch, grids in zip(('high', 'low'), entry['grids'], strict=True):
            for role, grid in grids.items():
                shapes.update(_grid_shapes(f'{path}.{role}.{branch}', grid))
        widths = [tuple(layers[f'{path}.{name}']['shape']) for name in BLOCK_LAYERS]
        hidden = widths[2][0]
        if widths != [(3 * channels, channels), (channels, channels), (hidden, channels), (channels, hidden)]:
            raise ValueError(f'layers of {path} do not fit each other: {widths}')
    return shapes


def _grid_shapes(path: str, grid: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {f'{path}.{name}': tuple(shape) for name, shape in grid['tensors'].items()}
