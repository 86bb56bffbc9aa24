"""Which sizes the kernels can run, and layers in the form that they read."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import BlockWeights, Grid, LinearWeights
from ..products import bias_on

COLUMNS = 32  # outputs of one packed weight panel
FEW_VECTORS, MANY_VECTORS = 4, 9  # of 16 keys: as many as there are up to four, beyond that nine
MAX_TOKENS = 16 * MANY_VECTORS
HEAD_CHANNELS = (16, 32)


def unsupported(weights: BlockWeights) -> str | None:
    """Why the kernels cannot run a block; None if they can."""
    if weights.adaptive:
        return f'{", ".join(weights.adaptive)}: no kernels for logarithms of an adaptive base'
    hidden, channels = weights.fc1.codes.shape
    num_heads, tokens = weights.num_heads, weights.bias.shape[-1]
    keys = [branch.k for branch in weights.grids]
    if weights.learned and any(not 2**key.bits - 128 <= key.zero_point <= 128 for key in keys):
        return 'keys of learned grids are no signed bytes'
    if hidden % 16:
        return f'{hidden} hidden channels are no multiple of 16'
    if channels % 16:
        return f'{channels} channels are no multiple of 16'
    if channels // num_heads not in HEAD_CHANNELS:
        return f'heads of {channels // num_heads} channels are none of {list(HEAD_CHANNELS)}'
    if tokens > MAX_TOKENS:
        return f'windows of {tokens} tokens are above {MAX_TOKENS}'
    return None


def key_vectors(tokens: int) -> int:
    """Vectors of 16 keys that a window of so many tokens takes."""
    vectors = -(-tokens // 16)
    return vectors if vectors <= FEW_VECTORS else MANY_VECTORS


class PackedLinear(NamedTuple):
    """A layer as the kernels read it, its columns padded to whole panels.

    sums = products + offset, doubled if need be, - zero_point * (sum of the row's codes - row shift);
    result = sums * step of the row, if it has one, * multiplier + addend.

    Products count twice where weights are odd numbers 2 q + 1 of nine bits (StatsQ): q is packed, with zero point -1.

    Attributes:
        panels: (N' / 32, K / 4, 32, 4) int8.
        zero_point: (N',) int32, or None where it is zero everywhere.
        offset: (2, N') int32 for each branch.
        multiplier: (2, N') float32.
        addend: (2, N') float32.
        inputs: K.
        outputs: N.
        doubled: whether products count twice.
        row_shift: for each branch.
        held: for each branch, how many sums of two products fit 16 bits, to which AVX2 cuts them; may be 0.
    """

    panels: Tensor
    zero_point: Tensor | None
    offset: Tensor
    multiplier: Tensor
    addend: Tensor
    inputs: int
    outputs: int
    doubled: bool
    row_shift: tuple[int, int]
    held: tuple[int, int]


def pack_linear(
    layer: LinearWeights, inputs: tuple[Grid, Grid], factor: Tensor | None = None, addend: Tensor | None = None
) -> PackedLinear:
    """Pack a layer for the input grids of both branches.

    Args:
        layer: N outputs, K inputs, K a multiple of 4.
        inputs: the input's grid in each branch.
        factor: (2, N), what the result is multiplied with, for outputs that are quantized at once.
        addend: (2, N), added after that.
    """
    outputs, width = layer.codes.shape
    if width % 4:
        raise ValueError(f'a layer of {width} inputs cannot be packed; use a multiple of 4')
    spare = -outputs % COLUMNS
    codes, zero_point = layer.codes, layer.zero_point.long()
    doubled = codes.dtype != torch.int8
    if doubled:
        codes, zero_point = ((codes - 1) // 2).to(torch.int8), torch.full_like(zero_point, -1)
    panels = F.pad(codes, (0, 0, 0, spare)).view(-1, COLUMNS, width // 4, 4).transpose(1, 2).contiguous()
    sums = codes.long().sum(1) - (0 if doubled else width * zero_point)
    offset = torch.stack([-grid.zero_point * sums for grid in inputs]).int()
    multiplier = torch.stack([layer.scale.double() * grid.scale for grid in inputs])
    total = torch.stack([bias_on(layer, grid) for grid in inputs])
    if factor is not None:
        multiplier, total = multiplier * factor, total * factor
    if addend is not None:
        total = total + addend
    high, low = (width * grid.zero_point if doubled else 0 for grid in inputs)
    return PackedLinear(
        panels,
        F.pad(zero_point.int(), (0, spare)) if bool(zero_point.any()) else None,
        F.pad(offset, (0, spare)),
        F.pad(multiplier.float(), (0, spare)),
        F.pad(total.float(), (0, spare)),
        width,
        outputs,
        doubled,
        (high, low),
        (sums_of_two_in_16_bits(codes, inputs[0]), sums_of_two_in_16_bits(codes, inputs[1])),
    )


def sums_of_two_in_16_bits(weights: Tensor, grid: Grid) -> int:
    """How many sums of two products of a grid's codes with weights (N, K) int8 fit 16 bits, whatever the codes are."""
    largest = 2 * (2**grid.bits - 1) * int(weights.short().abs().max())
    return (2**15 - 1) // max(largest, 1)
