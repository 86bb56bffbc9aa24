"""A Swin block by the kernels."""

from __future__ import annotations

import ctypes
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.windows.assignment import Run

from ..layouts import BlockWeights, BranchGrids, Grid
from ..tensor_checks import checked, checked_in_place
from . import learned
from .build import Kernels
from .operation import Operation, norm_on_grid, top
from .panels import key_vectors, pack_linear, unsupported
from .structures import Attention, Block, FloatPair, Pair, WindowSegment

_BEHIND = -1e30  # logit of a column behind the last token


class IntegerBlock(Operation):
    """A Swin block on windows of both branches.

    Args:
        kernels: from ``load``.
        weights: grids and weights of the block.
    """

    def __init__(self, kernels: Kernels, weights: BlockWeights) -> None:
        super().__init__(kernels)
        self.channels, self.hidden = weights.fc2.codes.shape
        self.heads, self.kinds, self.tokens = weights.num_heads, len(weights.bias), weights.bias.shape[-1]
        tokens = self.tokens
        reason = unsupported(weights)
        if reason is not None:
            raise ValueError(f'the integer kernels cannot run this block: {reason}; use the plain integer modules')
        grids = weights.grids
        vectors = key_vectors(tokens)
        bias = F.pad(weights.bias.float() * math.log2(math.e), (0, 16 * vectors - tokens), value=_BEHIND)
        block = Block(channels=self.channels, heads=self.heads, tokens=tokens, vectors=vectors, kinds=self.kinds)
        block.epsilon = weights.epsilon
        block.bias = self.keep(bias, 'bias', (self.kinds, self.heads, tokens, 16 * vectors))
        self._add_products(block, weights)
        block.attention = (Attention * 2)(*(_attention(branch) for branch in grids))
        block.qkv_in_top = FloatPair(*(top(branch.qkv_in) for branch in grids))
        block.fc1_in_top = FloatPair(*(top(branch.fc1_in) for branch in grids))
        block.fc2_in_inverse = FloatPair(*(1 / branch.fc2_in.scale for branch in grids))
        block.fc2_in_zero = FloatPair(*(branch.fc2_in.zero_point for branch in grids))
        block.fc2_in_top = FloatPair(*(top(branch.fc2_in) for branch in grids))
        if weights.learned:
            self._learned = [learned.learned_branch(self.keep, weights, branch) for branch in (0, 1)]
            block.learned = Pair(*(ctypes.addressof(grids) for grids in self._learned))
        self._needs_pad = weights.pad_qkv is None
        self._block = block

    def _add_products(self, block: Block, weights: BlockWeights) -> None:
        """Norms and products with what takes their results to codes, and the codes of padding."""
        grids = weights.grids
        factor, shift = learned.output_grids(weights) if weights.learned else self._output_grids(weights)
        highest = torch.tensor([[float(top(g)) for g in learned.qkv_grids(branch)] for branch in grids])
        highest = highest.repeat_interleave(self.channels, dim=1)
        seen = learned.unit_grid if weights.learned else lambda grid: grid
        inputs: dict[str, tuple[Grid, Grid]] = {}
        for name in ('qkv', 'proj', 'fc1', 'fc2'):
            high, low = (seen(getattr(branch, f'{name}_in')) for branch in grids)
            inputs[name] = high, low
        block.qkv = self.linear(pack_linear(weights.qkv, inputs['qkv'], factor, shift), 'qkv')
        for name in ('proj', 'fc1', 'fc2'):
            setattr(block, name, self.linear(pack_linear(getattr(weights, name), inputs[name]), name))
        for number, (norm, name) in enumerate(((weights.norm1, 'qkv'), (weights.norm2, 'fc1')), start=1):
            # learned zero points come behind the inverse step of the row
            own = tuple(grid._replace(zero_point=0) if weights.learned else grid for grid in inputs[name])
            gamma, beta = norm_on_grid(*norm, own)
            setattr(block, f'gamma{number}', self.pair(gamma, f'norm{number}', (self.channels,)))
            setattr(block, f'beta{number}', self.pair(beta, f'norm{number}', (self.channels,)))
        block.qkv_top = self.pair(highest, 'qkv_top', (3 * self.channels,))
        pad = torch.zeros(3 * self.channels) if weights.pad_qkv is None else weights.pad_qkv
        results = pad.double() * factor
        places: tuple[int, ...] = (3 * self.channels,)
        if weights.learned:
            codes, highest = learned.pad_codes(weights, results + shift), highest.unsqueeze(1)
            places = (self.tokens, *places)
        else:
            codes = torch.round(results) + shift
        codes = torch.minimum(codes.clamp(min=0), highest).to(torch.uint8)
        block.pad_codes = self.pair(codes, 'pad_qkv', places, torch.uint8)

    def _output_grids(self, weights: BlockWeights) -> tuple[Tensor, Tensor]:
        """What takes results of qkv to codes of q, k and v before rounding: factor and addend, (2, 3 * C) double."""
        rows = []
        for branch in weights.grids:
            for grid, scale in ((branch.q, weights.scale), (branch.k, 1.0), (branch.v, 1.0)):
                rows.append((scale / grid.scale, grid.zero_point))
        values = torch.tensor(rows, dtype=torch.float64).view(2, 3, 2).repeat_interleave(self.channels, dim=1)
        factor, shift = values.unbind(-1)
        return factor.contiguous(), shift.contiguous()

    def run(self, stream: Tensor, run: Run, threads: int | None = None, trace: int | None = None) -> Tensor:
        """Run the windows of ``run``, in place.

        Args:
            stream: (B * H * W, C) float32, contiguous; rows of other windows stay as they are.
            run: kept windows; one run with all of them is best, the kernel cuts it to fit the cache.
            threads: threads; torch's number if not given.
            trace: address of a structure of ``trace.py`` that takes copies of codes.

        Returns:
            ``stream``.
        """
        stream = checked_in_place(stream, 'stream', ('rows', self.channels))
        rows = checked(run.rows, 'rows of the run', ('tokens',), torch.int64)
        slots = None if run.slots is None else checked(run.slots, 'slots of the run', (len(rows),), torch.int64)
        if slots is not None and self._needs_pad:
            raise ValueError('these windows hold padding; give pad_qkv')
        segments = self._segments_of(run)
        self.kernels.call(
            'block',
            *(ctypes.addressof(self._block), stream.data_ptr(), len(stream), rows.data_ptr()),
            *(None if slots is None else slots.data_ptr(), len(rows), run.windows, run.high_windows),
            *(ctypes.addressof(segments), len(segments), threads or torch.get_num_threads(), trace),
        )
        return stream

    def _segments_of(self, run: Run) -> ctypes.Array[WindowSegment]:
        """Which windows have which attention mask."""
        for _, _, kind in run.segments:
            if not 0 <= kind < self.kinds:
                raise ValueError(f'segments of the run: mask {kind} is none of the {self.kinds} of this block')
        return (WindowSegment * len(run.segments))(*(WindowSegment(*segment) for segment in run.segments))


def _attention(grids: BranchGrids) -> Attention:
    attn, out = grids.attn, grids.proj_in
    values = Attention(
        logit_multiplier=grids.q.scale * grids.k.scale * math.log2(math.e),
        q_zero=int(grids.q.zero_point),
        v_zero=grids.v.zero_point,
        steps_per_octave=-1 if attn is None else attn.steps_per_octave,
        out_multiplier=grids.v.scale / out.scale * (1.0 if attn is None else attn.scale / learned.weight_unit(attn)),
        out_zero=out.zero_point,
        out_top=top(out),
    )
    if attn is not None and attn.steps_per_octave:
        values.probability_log_scale = math.log2(attn.scale)
        values.probability_levels = 2**attn.bits
    elif attn is not None:
        values.probability_inverse_step = 1 / attn.scale
        values.probability_zero = attn.zero_point
        values.probability_levels = 2**attn.bits - 1
    return values
