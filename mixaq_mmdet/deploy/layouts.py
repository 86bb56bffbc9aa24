"""What integer layers are told about a model: grids and weights."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Grid(NamedTuple):
    """Uniform activation grid: x^ = (clip(round(x / scale) + zero_point, 0, 2^bits - 1) - zero_point) scale."""

    scale: float
    zero_point: int
    bits: int


class ProbabilityGrid(NamedTuple):
    """Grid of attention probabilities.

    Attributes:
        steps_per_octave: 1 for log2, 2 for log-sqrt2, 0 for uniform.
        scale: the largest value D of a logarithmic grid, the step of a uniform one.
        zero_point: of a uniform grid.
        bits: code width.
    """

    steps_per_octave: int
    scale: float
    zero_point: int
    bits: int


class BranchGrids(NamedTuple):
    """Activation grids of one branch of a block. ``attn`` is None for float probabilities."""

    qkv_in: Grid
    q: Grid
    k: Grid
    v: Grid
    attn: ProbabilityGrid | None
    proj_in: Grid
    fc1_in: Grid
    fc2_in: Grid


class LinearWeights(NamedTuple):
    """A linear layer: w = (codes - zero_point) scale.

    Attributes:
        codes: (N, K) int8.
        scale: (N,) float32.
        zero_point: (N,) int32, in the same offset as ``codes`` (unsigned codes minus 128 come with zero_point - 128).
        bias: (N,) float32; zeros where there is none.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor


class BlockWeights(NamedTuple):
    """A Swin block.

    Attributes:
        qkv, proj, fc1, fc2: layers; C channels, any hidden width.
        norm1, norm2: (gamma, beta), each (2, C) float32: the high branch's, then the low one's.
        bias: (1 or kinds, heads, tokens, tokens) float32, position bias plus shift mask.
        pad_qkv: (3 * C,) float32, what qkv gives for a padding token (its input is not quantized); None without.
        grids: of the high branch, then of the low one (the same again if there is only one).
        num_heads: heads.
        scale: factor of q before it is quantized.
        epsilon: of the norms.
    """

    qkv: LinearWeights
    proj: LinearWeights
    fc1: LinearWeights
    fc2: LinearWeights
    norm1: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    bias: Tensor
    pad_qkv: Tensor | None
    grids: tuple[BranchGrids, BranchGrids]
    num_heads: int
    scale: float
    epsilon: float = 1e-5
