"""Integer layers outside the blocks, and the reading of layers from an integer state."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layouts import BlockWeights, BranchGrids, Grid, LinearWeights, ProbabilityGrid
from .packing import unpack_codes
from .products import ExactLinear, steps_of
from .state import BLOCK_LAYERS, Header, State

OFFSET = 128
NO_WEIGHTS = 'IntegerSwin has no weights yet; load a file that tools/deploy.py convert wrote'


def read_linear(header: Header, state: State, path: str) -> LinearWeights:
    """A layer with codes in int8: minus the zero point where that fits a row, else minus 128; int16 if neither fits."""
    entry = header['layers'][path]
    outputs, *inputs = entry['shape']
    codes = entry['stride'] * unpack_codes(state[f'{path}.codes'], entry['bits'], (outputs, prod(inputs)))
    zero_point = state[f'{path}.zero_point'].to(torch.int16)
    steps = codes - zero_point.unsqueeze(1)
    fits = ((steps >= -OFFSET) & (steps < OFFSET)).all(1)
    narrow = entry['stride'] == 1 or bool(fits.all())
    shift = torch.where(fits, zero_point, OFFSET) if narrow else zero_point
    return LinearWeights(
        codes=(codes - shift.unsqueeze(1)).to(torch.int8 if narrow else torch.int16),
        scale=state[f'{path}.scale'].float(),
        zero_point=(zero_point - shift).to(torch.int32),
        bias=state[f'{path}.bias'].float(),
    )


def read_block(header: Header, state: State, path: str, bias: Tensor) -> BlockWeights:
    """A block; ``bias`` is (1 or kinds, heads, tokens, tokens), position bias plus shift mask."""
    entry = header['blocks'][path]
    layers = {name: read_linear(header, state, f'{path}.{name}') for name in BLOCK_LAYERS}
    norms = {
        name: (state[f'{path}.{name}.weight'].float(), state[f'{path}.{name}.bias'].float())
        for name in ('norm1', 'norm2')
    }
    high, low = (
        _read_grids(state, path, grids, branch) for grids, branch in zip(entry['grids'], ('high', 'low'), strict=True)
    )
    return BlockWeights(
        **layers,
        **norms,
        bias=bias,
        pad_qkv=state[f'{path}.pad_qkv'].float(),
        grids=(high, low),
        num_heads=entry['heads'],
        scale=entry['scale'],
        epsilon=entry['epsilon'],
    )


def read_input_grid(header: Header, state: State, path: str) -> Grid:
    """The grid of the input of a layer outside the blocks, its offsets spread over the layer's inputs."""
    entry = header['layers'][path]
    grid = _read_grid(state, f'{path}.input.high', entry['grid'])
    per_channel = prod(entry['shape'][2:])  # of a convolution: places of its kernel
    before, after = (
        None if offset is None else offset.repeat_interleave(per_channel) for offset in (grid.before, grid.after)
    )
    return grid._replace(before=before, after=after)


def _read_grid(state: State, path: str, entry: dict[str, Any]) -> Grid:
    tensors = {name: state[f'{path}.{name}'].float() for name in entry['tensors']}
    return Grid(entry['scale'], entry['zero_point'], entry['bits'], **tensors)


def _read_grids(state: State, path: str, entries: dict[str, dict[str, Any]], branch: str) -> BranchGrids:
    grids = {role: _read_grid(state, f'{path}.{role}.{branch}', entry) for role, entry in entries.items()}
    attn = grids.pop('attn')
    steps_per_octave = entries['attn']['steps_per_octave']
    probabilities = ProbabilityGrid(steps_per_octave, attn.scale, attn.zero_point, attn.bits, attn.steps)
    return BranchGrids(**grids, attn=probabilities)


class IntegerLinear(nn.Module):
    """Takes the place of an ``nn.Linear`` with one input grid; empty until filled."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: Grid | None = None
        self.product: ExactLinear | None = None

    def fill(self, weights: LinearWeights, grid: Grid) -> None:
        """Take over a layer and the grid of its input."""
        self.grid, self.product = grid, ExactLinear(weights, (grid,))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        if self.grid is None or self.product is None:
            raise ValueError(NO_WEIGHTS)
        return self.product(steps_of(x, self.grid), self.grid)

    def _load_from_state_dict(self, *_: Any) -> None:
        """The backbone reads the file and fills its layers."""


class IntegerPatches(IntegerLinear):
    """Takes the place of the patch embedding's convolution.

    Args:
        conv: the convolution, without padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) to (B, N, H', W')."""
        patches = F.unfold(x, self.kernel_size, stride=self.stride).transpose(1, 2)
        sides = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        height, width = ((size - kernel) // stride + 1 for size, kernel, stride in sides)
        return super().forward(patches).transpose(1, 2).reshape(x.shape[0], -1, height, width)
