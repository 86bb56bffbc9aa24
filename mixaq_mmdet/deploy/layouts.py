"""What integer layers are told about a model: grids and weights."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Grid(NamedTuple):
    """Activation grid: x^ = (clip(round((x + before) / step) + zero_point, 0, 2^bits - 1) - zero_point) step + after.

    Attributes:
        scale: the step.
        zero_point: code of 0 (without offsets).
        bits: code width.
        steps: (tokens,) where each token position of a window has a step of its own; ``scale`` is 1 then.
        before: (channels,) offset before rounding, or None.
        after: (channels,) offset after it, or None.
    """

    scale: float
    zero_point: int
    bits: int
    steps: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None

    @property
    def learned(self) -> bool:
        """Whether it is more than a scale and a zero point."""
        return self.steps is not None or self.before is not None or self.after is not None


class ProbabilityGrid(NamedTuple):
    """Grid of attention probabilities.

    Attributes:
        steps_per_octave: 1 for log2, 2 for log-sqrt2, 0 for uniform.
        scale: the largest value D of a logarithmic grid, the step of a uniform one.
        zero_point: of a uniform grid.
        bits: code width.
        steps: (tokens,) of a uniform grid whose step depends on the query's position; ``scale`` is 1 then.
    """

    steps_per_octave: int
    scale: float
    zero_point: int
    bits: int
    steps: Tensor | None = None


class BranchGrids(NamedTuple):
    """Activation grids of one branch of a block. ``attn`` is None for float probabilities.

    Offsets of q, k and v are (channels of a head,).
    """

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
        codes: (N, K) int8; int16 where they are odd numbers of more than eight bits (StatsQ).
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

    @property
    def learned(self) -> bool:
        """Whether any grid is more than a scale and a zero point."""
        return any(
            grid.steps is not None if isinstance(grid, ProbabilityGrid) else grid.learned
            for branch in self.grids
            for grid in branch
            if grid is not None
        )
