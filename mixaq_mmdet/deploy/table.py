"""Reading a converted model: layers, grids and blocks of an integer state."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from mixaq_mmdet.quantization.adaptive_log import RESOLUTION

from .layouts import BlockWeights, BranchGrids, Grid, LinearWeights, ProbabilityGrid
from .packing import unpack_codes
from .state import BLOCK_LAYERS, HEADER, Header, State, check_tensors, decode_header, write_header
from .versions import up_to_date

OFFSET = 128


class Table:
    """A header with its tensors, checked against each other.

    Args:
        state: tensors of a converted model, names relative to it; of any version that this package reads.

    Raises:
        ValueError: for a state that holds no integer model, is incomplete or of another version.
    """

    def __init__(self, state: State) -> None:
        if HEADER not in state:
            raise ValueError(
                'the checkpoint holds no integer backbone; run tools/deploy.py convert CONFIG CKPT -o FILE on it and '
                'load FILE, or use type="TwoBranchSwin"'
            )
        self.header: Header
        self.state: State
        self.header, self.state = up_to_date(decode_header(state[HEADER]), state)
        self.state = {**self.state, HEADER: write_header(self.header)}
        check_tensors(self.header, self.state)

    @property
    def layers(self) -> dict[str, Any]:
        """Rows by path."""
        return self.header['layers']

    @property
    def blocks(self) -> dict[str, Any]:
        """Swin blocks by path."""
        return self.header['blocks']

    def weights(self, path: str) -> LinearWeights:
        """Weights (N, K) with codes in int8: minus the zero point where that fits a row, else minus 128; else int16."""
        row = self.layers[path]
        outputs, *inputs = row['shape']
        codes = row['stride'] * unpack_codes(self.state[f'{path}.codes'], row['bits'], (outputs, prod(inputs)))
        zero_point = self.state[f'{path}.zero_point'].to(torch.int16)
        steps = codes - zero_point.unsqueeze(1)
        fits = ((steps >= -OFFSET) & (steps < OFFSET)).all(1)
        narrow = row['stride'] == 1 or bool(fits.all())
        shift = torch.where(fits, zero_point, OFFSET) if narrow else zero_point
        return LinearWeights(
            codes=(codes - shift.unsqueeze(1)).to(torch.int8 if narrow else torch.int16),
            scale=self.state[f'{path}.scale'].float(),
            zero_point=(zero_point - shift).to(torch.int32),
            bias=self.state[f'{path}.bias'].float(),
        )

    def grid(self, path: str, branch: str = 'high') -> Grid:
        """The grid of a layer's input, its offsets by channel."""
        return self._grid(f'{path}.input.{branch}', self.layers[path]['input'][branch])

    def flat_grid(self, path: str) -> Grid:
        """The same for a convolution as a product of patches: an offset for each of its K inputs."""
        grid, places = self.grid(path), prod(self.layers[path]['shape'][2:])
        before, after = (None if x is None else x.repeat_interleave(places) for x in (grid.before, grid.after))
        return grid._replace(before=before, after=after)

    def block(self, path: str, bias: Tensor) -> BlockWeights:
        """A block; ``bias`` is (1 or kinds, heads, tokens, tokens), position bias plus shift mask."""
        entry = self.blocks[path]
        layers = {name: self.weights(f'{path}.{layer}') for name, layer in BLOCK_LAYERS.items()}
        norm1, norm2 = (
            (self.state[f'{path}.{name}.weight'].float(), self.state[f'{path}.{name}.bias'].float())
            for name in ('norm1', 'norm2')
        )
        return BlockWeights(
            **layers,
            norm1=norm1,
            norm2=norm2,
            bias=bias,
            pad_qkv=self.state[f'{path}.pad_qkv'].float(),
            grids=(self._branch(path, 'high'), self._branch(path, 'low')),
            num_heads=entry['heads'],
            scale=entry['scale'],
            epsilon=entry['epsilon'],
        )

    def _branch(self, path: str, branch: str) -> BranchGrids:
        products = self.blocks[path]['grids']
        grids = {role: self._grid(f'{path}.{role}.{branch}', grid[branch]) for role, grid in products.items()}
        grids.update({f'{name}_in': self.grid(f'{path}.{layer}', branch) for name, layer in BLOCK_LAYERS.items()})
        attn = grids.pop('attn')
        steps_per_octave = 0 if attn.levels is not None else int(products['attn'][branch]['steps_per_octave'])
        uniform = (attn.scale, attn.zero_point, attn.bits, attn.steps)
        probabilities = ProbabilityGrid(steps_per_octave, *uniform, attn.levels, attn.base)
        return BranchGrids(**grids, attn=probabilities)

    def _grid(self, path: str, entry: dict[str, Any]) -> Grid:
        tensors = {name: self.state[f'{path}.{name}'].float() for name in entry['tensors']}
        base = round(RESOLUTION / entry['steps_per_octave']) if 'levels' in tensors else 0
        return Grid(entry['scale'], entry['zero_point'], entry['bits'], **tensors, base=base)
