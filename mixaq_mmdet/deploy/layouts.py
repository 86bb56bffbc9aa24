"""What integer layers are told about a model: grids and weights."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Grid(NamedTuple):
    """Activation grid: x^ = (clip(round((x + before) / step) + zero_point, 0, 2^bits - 1) - zero_point) step + after.

    One with ``levels`` is logarithmic: x^ = levels[code] scale + after, as ``quantization.adaptive_log`` says.

    Attributes:
        scale: the step.
        zero_point: code of 0 (without offsets).
        bits: code width.
        steps: (tokens,) where each token position of a window has a step of its own; ``scale`` is 1 then.
        channel_steps: (channels,) where each channel has; ``scale`` is 1 then.
        before: (channels,) offset before rounding, or None.
        after: (channels,) offset after it, or None.
        levels: (2^bits + 1,) of a logarithmic grid: the value of each code for a scale of 1.
        base: of it.
    """

    scale: float
    zero_point: int
    bits: int
    steps: Tensor | None = None
    before: Tensor | None = None
    after: Tensor | None = None
    channel_steps: Tensor | None = None
    levels: Tensor | None = None
    base: int = 0

    @property
    def learned(self) -> bool:
        """Whether it is more than a scale and a zero point."""
        parts = (self.steps, self.before, self.after, self.channel_steps, self.levels)
        return any(part is not None for part in parts)


class ProbabilityGrid(NamedTuple):
    """Grid of attention probabilities.

    Attributes:
        steps_per_octave: 1 for log2, 2 for log-sqrt2, 0 for uniform, and for grids with ``levels``.
        scale: the largest value D of a logarithmic grid, the step of a uniform one.
        zero_point: of a uniform grid.
        bits: code width.
        steps: (tokens,) of a uniform grid whose step depends on the query's position; ``scale`` is 1 then.
        levels, base: of a logarithmic grid of an adaptive base, as in :class:`Grid`.
    """

    steps_per_octave: int
    scale: float
    zero_point: int
    bits: int
    steps: Tensor | None = None
    levels: Tensor | None = None
    base: int = 0


class BranchGrids(NamedTuple):
    """Activation grids of one branch of a block. ``attn`` is None for float probabilities.

    Offsets of q, k and v are (channels of a head,), and so are steps by channel, which v alone may have.
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


class Geometry(NamedTuple):
    """How a convolution walks over a map; each pair is (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class Layer(NamedTuple):
    """A linear layer, convolution or deconvolution outside the Swin blocks, from codes to floats or codes.

    Attributes:
        weights: of N outputs; K inputs, of a convolution those of a patch, channel by channel.
        grid: of the input, offsets by channel.
        geometry: of a convolution; None for a linear layer.
        relu: whether negative results become 0.
        out_grid: of the result, if codes are wanted; one step, no offset before rounding.
        side: of a deconvolution, which is a linear layer of each pixel: its N outputs are side * side pixels, row by
            row. 1 for other layers.
        gelu: whether results pass through GELU, instead.
    """

    weights: LinearWeights
    grid: Grid
    geometry: Geometry | None = None
    relu: bool = False
    out_grid: Grid | None = None
    side: int = 1
    gelu: bool = False


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
    def adaptive(self) -> list[str]:
        """The roles of the grids that are logarithmic with an adaptive base."""
        roles = {
            role
            for branch in self.grids
            for role, grid in branch._asdict().items()
            if grid is not None and grid.levels is not None
        }
        return sorted(roles)

    @property
    def learned(self) -> bool:
        """Whether any grid is more than a scale and a zero point."""
        return any(
            grid.steps is not None if isinstance(grid, ProbabilityGrid) else grid.learned
            for branch in self.grids
            for grid in branch
            if grid is not None
        )
