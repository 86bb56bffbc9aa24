"""Quantized layers as modules that leave Quantize, Clip and Dequantize nodes in a graph.

Each takes the place of a simulated layer and is called as that is. Grids are those of the simulated model: what is
added before rounding is added in front of QuantizeLinear, what is added after it is folded into the bias, because an
Add behind DequantizeLinear turns the product into float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.quantization import BranchAware, Split

from .grids import ActivationGrid, Inexpressible, WeightGrid
from .nodes import dequantize, gemm, quantize


class ActivationNodes(nn.Module):
    """Quantize, Clip below eight bits, Dequantize.

    Args:
        grid: of the activation.
        signed: int8 codes with zero point 0, for targets that know no other.
    """

    scale: Tensor
    zero_point: Tensor
    before: Tensor | None
    after: Tensor | None

    def __init__(self, grid: ActivationGrid, signed: bool = False) -> None:
        super().__init__()
        if signed and not grid.symmetric:
            raise Inexpressible(f'zero point {grid.zero_point} instead of 0 after centring')
        dtype = torch.int8 if signed else torch.uint8
        self.register_buffer('scale', torch.tensor(grid.scale))
        self.register_buffer('zero_point', torch.tensor(0 if signed else grid.zero_point, dtype=dtype))
        self.register_buffer('before', grid.before)
        self.register_buffer('after', grid.after)
        self.highest = None if grid.bits == 8 else 2 ** (grid.bits - signed) - 1

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on its grid, without what is added after rounding."""
        return dequantize(self.codes(x), self.scale, self.zero_point)

    def codes(self, x: Tensor) -> Tensor:
        """Codes of ``x``."""
        if self.before is not None:
            x = x + self.before
        return quantize(x, self.scale, self.zero_point, self.highest)


class ProductNodes(nn.Module):
    """One branch of a linear layer: (..., K) to (..., N).

    Args:
        grid: of the input.
        weight: of the weight, (N, K).
        bias: (N,) or None.
        signed: see :class:`ActivationNodes`.
        as_gemm: rows times a matrix plus an int32 bias, which ONNX Runtime computes in integers; otherwise a product
            of any number of dimensions plus a float bias.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor
    bias_scale: Tensor

    def __init__(
        self, grid: ActivationGrid, weight: WeightGrid, bias: Tensor | None, signed: bool = False, as_gemm: bool = False
    ) -> None:
        super().__init__()
        self.activation = ActivationNodes(grid, signed)
        values = weight.values()
        bias = values.new_zeros(len(values)) if bias is None else bias.detach().float()
        if grid.after is not None:
            bias = bias + values @ grid.after
        self.as_gemm = as_gemm
        self.register_buffer('codes', weight.codes)
        self.register_buffer('scale', weight.scale)
        zero_point = weight.zero_point
        if as_gemm and zero_point is None:  # ONNX Runtime fuses no Gemm whose weight comes without one
            zero_point = torch.zeros(len(values), dtype=weight.codes.dtype)
        self.register_buffer('zero_point', zero_point)
        if as_gemm:
            self.register_buffer('bias_scale', weight.scale * grid.scale)
            self.register_buffer('bias', whole_bias(bias, self.bias_scale))
        else:
            self.register_buffer('bias', bias)

    def forward(self, x: Tensor) -> Tensor:
        """The product of both grids, plus the bias."""
        weight = dequantize(self.codes, self.scale, self.zero_point, 0)
        if not self.as_gemm:
            return self.activation(x) @ weight.t() + self.bias
        rows = self.activation(x.reshape(-1, x.shape[-1]))
        out = gemm(rows, weight, dequantize(self.bias, self.bias_scale, None, 0))
        return out.reshape(*x.shape[:-1], out.shape[-1])


def whole_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """A bias in steps of ``scale``, int32.

    Raises:
        Inexpressible: where 32 bits do not hold it.
    """
    steps = (bias.double() / scale.double()).round()
    if steps.abs().max() >= 2**31:
        raise Inexpressible('a bias beyond 32 bits in steps of the product')
    return steps.to(torch.int32)


class LinearNodes(BranchAware, nn.Module):
    """A quantized linear layer, branch by branch.

    Args:
        branches: 'high' and 'low', or one of them.
        padding: (N,) what padding tokens become; None where they need no care.
        compensation: a low-rank correction of the output, of the quantized input.
    """

    branches: Any
    padding: Tensor | None

    def __init__(self, branches: Mapping[str, nn.Module], padding: Tensor | None = None) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.register_buffer('padding', padding)

    def forward(self, x: Tensor, split: Split | None = None) -> Tensor:
        """(..., K) to (..., N)."""
        out = by_branch(self.branches, split, x)
        if self.padding is None or split is None or split.real is None:
            return out
        return torch.where(split.real.unsqueeze(-1), out, self.padding)


class MatmulNodes(BranchAware, nn.Module):
    """The product of two quantized activations, branch by branch."""

    branches: Any

    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)

    def forward(self, left: Tensor, right: Tensor, split: Split | None = None) -> Tensor:
        """(..., M, K) times (..., K, N)."""
        return by_branch(self.branches, split, left, right)


class PairNodes(nn.Module):
    """One branch of an attention product."""

    def __init__(self, left: ActivationGrid, right: ActivationGrid, signed: bool) -> None:
        super().__init__()
        if any(offset is not None for grid in (left, right) for offset in (grid.before, grid.after)):
            raise Inexpressible('offsets of an attention product')
        self.left, self.right = ActivationNodes(left, signed), ActivationNodes(right, signed)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(..., M, K) times (..., K, N)."""
        return self.left(left) @ self.right(right)


def by_branch(branches: Mapping[str, Callable[..., Tensor]], split: Split | None, *tensors: Tensor) -> Tensor:
    """Each branch on its entries of dimension 0, the high ones first."""
    entries = len(tensors[0])
    high = entries if split is None or 'low' not in branches else split.high
    parts = [('high', slice(0, high)), ('low', slice(high, entries))]
    kept = [(name, part) for name, part in parts if part.start < part.stop]
    outs = [branches[name](*(x if len(kept) == 1 else x[part] for x in tensors)) for name, part in kept]
    return outs[0] if len(outs) == 1 else torch.cat(outs)
