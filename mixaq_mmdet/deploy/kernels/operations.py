"""Python side of the kernels: parameters held as tensors, calls through ctypes."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.windows.assignment import Run

from ..layouts import BlockWeights, BranchGrids, Grid, LinearWeights
from . import learned
from .build import Kernels
from .memory import MAPS
from .panels import PackedLinear, key_vectors, pack_linear, unsupported
from .structures import Attention, Block, Embedding, FloatPair, Linear, Merging, Pair

_BEHIND = -1e30  # logit of a column behind the last token


class _Operation:
    """Keeps the tensors whose addresses its structure holds."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._kept: list[Tensor] = []

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _pair(self, tensor: Tensor) -> Any:
        """Addresses of both rows of a (2, ...) tensor."""
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return Pair(tensor[0].data_ptr(), tensor[1].data_ptr())

    def _linear(self, packed: PackedLinear) -> Linear:
        zero_point = None if packed.zero_point is None else self._keep(packed.zero_point)
        rows = (self._pair(value) for value in (packed.offset, packed.multiplier, packed.addend))
        shift = (ctypes.c_int32 * 2)(*packed.row_shift)
        return Linear(
            self._keep(packed.panels), zero_point, *rows, packed.inputs, packed.outputs, packed.doubled, shift
        )


class IntegerBlock(_Operation):
    """A Swin block on windows of both branches.

    Args:
        kernels: from ``load``.
        weights: grids and weights of the block.
    """

    def __init__(self, kernels: Kernels, weights: BlockWeights) -> None:
        super().__init__(kernels)
        self.channels, self.hidden = weights.fc2.codes.shape
        self.heads, self.tokens = weights.num_heads, weights.bias.shape[-1]
        tokens = self.tokens
        reason = unsupported(weights)
        if reason is not None:
            raise ValueError(f'the integer kernels cannot run this block: {reason}; use the plain integer modules')
        grids = weights.grids
        vectors = key_vectors(tokens)
        bias = F.pad(weights.bias.float() * math.log2(math.e), (0, 16 * vectors - tokens), value=_BEHIND)
        block = Block(channels=self.channels, heads=weights.num_heads, tokens=tokens, vectors=vectors)
        block.epsilon = weights.epsilon
        block.bias = self._keep(bias)
        self._add_products(block, weights)
        block.attention = (Attention * 2)(*(_attention(branch) for branch in grids))
        block.qkv_in_top = FloatPair(*(_top(branch.qkv_in) for branch in grids))
        block.fc1_in_top = FloatPair(*(_top(branch.fc1_in) for branch in grids))
        block.fc2_in_inverse = FloatPair(*(1 / branch.fc2_in.scale for branch in grids))
        block.fc2_in_zero = FloatPair(*(branch.fc2_in.zero_point for branch in grids))
        block.fc2_in_top = FloatPair(*(_top(branch.fc2_in) for branch in grids))
        if weights.learned:
            self._learned = [learned.learned_branch(self._keep, weights, branch) for branch in (0, 1)]
            block.learned = Pair(*(ctypes.addressof(grids) for grids in self._learned))
        self._needs_pad = weights.pad_qkv is None
        self._block = block

    def _add_products(self, block: Block, weights: BlockWeights) -> None:
        """Norms and products with what takes their results to codes, and the codes of padding."""
        grids = weights.grids
        factor, shift = learned.output_grids(weights) if weights.learned else self._output_grids(weights)
        top = torch.tensor([[float(_top(g)) for g in learned.qkv_grids(branch)] for branch in grids])
        top = top.repeat_interleave(self.channels, dim=1)
        seen = learned.unit_grid if weights.learned else lambda grid: grid
        inputs = {
            name: tuple(seen(getattr(branch, f'{name}_in')) for branch in grids)
            for name in ('qkv', 'proj', 'fc1', 'fc2')
        }
        block.qkv = self._linear(pack_linear(weights.qkv, inputs['qkv'], factor, shift))
        for name in ('proj', 'fc1', 'fc2'):
            setattr(block, name, self._linear(pack_linear(getattr(weights, name), inputs[name])))
        for number, (norm, name) in enumerate(((weights.norm1, 'qkv'), (weights.norm2, 'fc1')), start=1):
            # learned zero points come behind the inverse step of the row
            own = tuple(grid._replace(zero_point=0) if weights.learned else grid for grid in inputs[name])
            gamma, beta = norm_on_grid(*norm, own)
            setattr(block, f'gamma{number}', self._pair(gamma))
            setattr(block, f'beta{number}', self._pair(beta))
        block.qkv_top = self._pair(top)
        pad = torch.zeros(3 * self.channels) if weights.pad_qkv is None else weights.pad_qkv
        results = pad.double() * factor
        if weights.learned:
            codes, top = learned.pad_codes(weights, results + shift), top.unsqueeze(1)
        else:
            codes = torch.round(results) + shift
        block.pad_codes = self._pair(torch.minimum(codes.clamp(min=0), top).to(torch.uint8))

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
        if stream.dtype != torch.float32 or not stream.is_contiguous() or stream.shape[1] != self.channels:
            raise ValueError(
                f'stream is {tuple(stream.shape)} {stream.dtype}; give contiguous float32 rows of {self.channels}'
            )
        if run.slots is not None and self._needs_pad:
            raise ValueError('these windows hold padding; give pad_qkv')
        kinds = torch.zeros(run.windows, dtype=torch.int32)
        for start, stop, kind in run.segments:
            kinds[start:stop] = kind
        rows = run.rows.contiguous()
        slots = None if run.slots is None else run.slots.contiguous()
        self._kernels.block(
            ctypes.addressof(self._block),
            stream.data_ptr(),
            rows.data_ptr(),
            None if slots is None else slots.data_ptr(),
            len(rows),
            run.windows,
            run.high_windows,
            kinds.data_ptr(),
            threads or torch.get_num_threads(),
            trace,
        )
        return stream


class IntegerMerging(_Operation):
    """Patch merging: 2 x 2 tokens, norm, codes, product.

    Args:
        kernels: from ``load``.
        reduction: (N, 4 * C), inputs in the order of stock's Unfold: channel by channel, its four corners.
        gamma: (4 * C,) of the norm, same order.
        beta: (4 * C,).
        grid: of the normed input.
        epsilon: of the norm.
    """

    def __init__(
        self, kernels: Kernels, reduction: LinearWeights, gamma: Tensor, beta: Tensor, grid: Grid, epsilon: float = 1e-5
    ) -> None:
        super().__init__(kernels)
        self.outputs, inputs = reduction.codes.shape
        self.channels = inputs // 4
        if self.channels % 16 or self.outputs % 16:
            raise ValueError(f'the integer kernels merge multiples of 16 channels, not {self.channels}')
        by_corner = torch.arange(inputs).view(-1, 4).t().flatten()
        before, after = (None if x is None else x[by_corner] for x in (grid.before, grid.after))
        grid = grid._replace(before=before, after=after)
        gamma, beta = norm_on_grid(gamma[None, by_corner], beta[None, by_corner], (grid,))
        packed = pack_linear(reduction._replace(codes=reduction.codes[:, by_corner]), (grid, grid))
        addresses = self._keep(gamma[0]), self._keep(beta[0])
        self._merging = Merging(self._linear(packed), *addresses, _top(grid), epsilon, self.channels)

    def run(self, x: Tensor, size: tuple[int, int], threads: int | None = None) -> tuple[Tensor, tuple[int, int]]:
        """(B, H * W, C) float32 with (H, W) to (B, H' * W', N) with (H', W')."""
        height, width = size
        merged = (height + 1) // 2, (width + 1) // 2
        x = x.contiguous()
        out = MAPS.take(x.shape[0], merged[0] * merged[1], self.outputs)
        self._kernels.merge(
            ctypes.addressof(self._merging),
            x.data_ptr(),
            x.shape[0],
            height,
            width,
            out.data_ptr(),
            threads or torch.get_num_threads(),
        )
        return out, merged


class IntegerEmbedding(_Operation):
    """Patch embedding: codes of the image, product, norm.

    Args:
        kernels: from ``load``.
        projection: (N, in_channels * patch * patch), a convolution's weights flattened.
        grid: of the image.
        gamma: (N,) of the norm; None without.
        beta: (N,).
        patch: side and stride of a patch.
        epsilon: of the norm.
    """

    def __init__(
        self,
        kernels: Kernels,
        projection: LinearWeights,
        grid: Grid,
        gamma: Tensor | None,
        beta: Tensor | None,
        patch: int = 4,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__(kernels)
        self.patch = patch
        self.outputs, inputs = projection.codes.shape
        if self.outputs % 16:
            raise ValueError(f'the integer kernels embed into multiples of 16 channels, not {self.outputs}')
        before = torch.zeros(inputs) if grid.before is None else grid.before
        addresses = [None if value is None else self._keep(value.float()) for value in (gamma, beta)]
        self._embedding = Embedding(
            self._linear(pack_linear(projection, (grid, grid))),
            *(1 / grid.scale, grid.zero_point, _top(grid)),
            self._keep(before[:: patch**2].float()),
            *addresses,
            *(epsilon, inputs // patch**2, patch),
        )

    def run(self, images: Tensor, threads: int | None = None) -> tuple[Tensor, tuple[int, int]]:
        """(B, in_channels, H, W) float32 to (B, H' * W', N) with (H', W'); odd sizes are padded with zeros."""
        images = images.contiguous()
        batch, _, height, width = images.shape
        size = -(-height // self.patch), -(-width // self.patch)
        out = MAPS.take(batch, size[0] * size[1], self.outputs)
        self._kernels.embed(
            ctypes.addressof(self._embedding),
            images.data_ptr(),
            batch,
            height,
            width,
            out.data_ptr(),
            threads or torch.get_num_threads(),
        )
        return out, size


def output_norm(
    kernels: Kernels,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    size: tuple[int, int],
    epsilon: float = 1e-5,
    threads: int | None = None,
) -> Tensor:
    """LayerNorm of (B, H * W, C) float32, as a map (B, C, H, W)."""
    x, gamma, beta = x.contiguous(), gamma.detach().float().contiguous(), beta.detach().float().contiguous()
    batch, length, channels = x.shape
    if channels % 16:
        raise ValueError(f'the kernels norm multiples of 16 channels, not {channels}')
    out = MAPS.take(batch, channels, *size)
    self_threads = threads or torch.get_num_threads()
    addresses = x.data_ptr(), gamma.data_ptr(), beta.data_ptr()
    kernels.output(*addresses, epsilon, batch, length, channels, out.data_ptr(), self_threads)
    return out


def norm_on_grid(gamma: Tensor, beta: Tensor, grids: tuple[Grid, ...]) -> tuple[Tensor, Tensor]:
    """Affine parameters (branches, C) of norms whose results are codes before rounding."""
    scale = torch.tensor([grid.scale for grid in grids], dtype=torch.float64).view(-1, 1)
    zero_point = torch.tensor([grid.zero_point for grid in grids], dtype=torch.float64).view(-1, 1)
    none = torch.zeros(beta.shape[-1])
    before = torch.stack([none if grid.before is None else grid.before for grid in grids])
    beta = beta.detach().double() + before
    return (gamma.detach().double() / scale).float(), (beta / scale + zero_point).float()


def _attention(grids: BranchGrids) -> Attention:
    attn, out = grids.attn, grids.proj_in
    values = Attention(
        logit_multiplier=grids.q.scale * grids.k.scale * math.log2(math.e),
        q_zero=int(grids.q.zero_point),
        v_zero=grids.v.zero_point,
        steps_per_octave=-1 if attn is None else attn.steps_per_octave,
        out_multiplier=grids.v.scale / out.scale * (1.0 if attn is None else attn.scale / learned.weight_unit(attn)),
        out_zero=out.zero_point,
        out_top=_top(out),
    )
    if attn is not None and attn.steps_per_octave:
        values.probability_log_scale = math.log2(attn.scale)
        values.probability_levels = 2**attn.bits
    elif attn is not None:
        values.probability_inverse_step = 1 / attn.scale
        values.probability_zero = attn.zero_point
        values.probability_levels = 2**attn.bits - 1
    return values


def _both(grids: tuple[BranchGrids, BranchGrids], role: str) -> tuple[Grid, Grid]:
    return getattr(grids[0], role), getattr(grids[1], role)


def _top(grid: Grid) -> float:
    return 2**grid.bits - 1
