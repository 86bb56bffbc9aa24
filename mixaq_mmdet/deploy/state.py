"""The state of a converted model: a table of layers by path, and tensors.

The table is a header (JSON as a uint8 tensor)::

    format, version
    layers   path: bits, stride and shape of its weight; input: {branch: grid}; norm: true where the norm of its
             ConvModule is a part of it
    blocks   path: grids of the products inside attention, {role: {branch: grid}}; heads, tokens, scale, epsilon

A grid is its scale, zero point, bits, steps per octave (0: uniform) and the shapes of its tensors. Paths are those of
the simulated model, so that a layer of a neck or a head is one more row.

The kernels read tensors by address, so that sizes are checked here, once, before anything is run.
"""

from __future__ import annotations

import json
from math import prod
from typing import Any

import torch
from torch import Tensor

from mixaq_mmdet.quantization.state import INTEGER_HEADER

FORMAT = 'mixaq_mmdet.integers'
VERSION = 3  # 2: the backbone alone, see versions.py
HEADER = INTEGER_HEADER
CONVERT_ANEW = 'run tools/deploy.py convert again'
BLOCK_LAYERS = {
    'qkv': 'attn.w_msa.qkv',
    'proj': 'attn.w_msa.proj',
    'fc1': 'ffn.layers.0.0',
    'fc2': 'ffn.layers.1',
}
"""Layers of a Swin block by short name, and where they are in it."""

Header = dict[str, Any]
State = dict[str, Tensor]


def new_header() -> Header:
    """A table without rows."""
    return {'format': FORMAT, 'version': VERSION, 'layers': {}, 'blocks': {}}


def write_header(header: Header) -> Tensor:
    """A header as a uint8 tensor, which checkpoints carry without pickled objects."""
    return torch.tensor(list(json.dumps(header).encode()), dtype=torch.uint8)


def decode_header(encoded: Tensor) -> Header:
    """Undo :func:`write_header`.

    Raises:
        ValueError: for bytes that are no header.
    """
    try:
        header = json.loads(bytes(encoded.tolist()).decode())
        header['version'] = int(header.get('version', 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'the header of the integer file cannot be read; {CONVERT_ANEW}') from error
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
    shapes: dict[str, tuple[int, ...]] = {}
    for path, row in header['layers'].items():
        shapes[f'{path}.codes'] = (-(-prod(row['shape']) * row['bits'] // 8),)
        shapes.update({f'{path}.{name}': (row['shape'][0],) for name in ('scale', 'zero_point', 'bias')})
        for branch, grid in row['input'].items():
            shapes.update(_grid_shapes(f'{path}.input.{branch}', grid))
    for path, block in header['blocks'].items():
        shapes.update(_block_shapes(path, block, header['layers']))
    return shapes


def _block_shapes(path: str, block: dict[str, Any], layers: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    widths = [tuple(layers[f'{path}.{layer}']['shape']) for layer in BLOCK_LAYERS.values()]
    channels, hidden = widths[1][0], widths[2][0]
    if widths != [(3 * channels, channels), (channels, channels), (hidden, channels), (channels, hidden)]:
        raise ValueError(f'layers of {path} do not fit each other: {widths}')
    shapes: dict[str, tuple[int, ...]] = {
        f'{path}.{norm}.{name}': (2, channels) for norm in ('norm1', 'norm2') for name in ('weight', 'bias')
    }
    shapes[f'{path}.position_bias'] = (block['heads'], block['tokens'], block['tokens'])
    shapes[f'{path}.pad_qkv'] = (3 * channels,)
    for role, branches in block['grids'].items():
        for branch, grid in branches.items():
            shapes.update(_grid_shapes(f'{path}.{role}.{branch}', grid))
    return shapes


def _grid_shapes(path: str, grid: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {f'{path}.{name}': tuple(shape) for name, shape in grid['tensors'].items()}
