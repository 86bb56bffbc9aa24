"""ONNX nodes that torch has no operator for, placed in a graph by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OLDEST_OPSET = 19  # of quantization nodes as TensorRT reads them; torch itself begins at 18
OPSET = 21


def node(op: str, inputs: list[Tensor], shape: Any, dtype: torch.dtype, **attributes: Any) -> Tensor:
    """One output of the operator ``op``; where nothing is exported, zeros of its shape."""
    return torch.onnx.ops.symbolic(op, inputs, attributes, dtype=dtype, shape=tuple(shape), version=OPSET)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, highest: int | None = None) -> Tensor:
    """Codes of ``x`` in the type of ``zero_point``, at most ``highest`` and at least its negative below zero points."""
    codes = node('QuantizeLinear', [x, scale, zero_point], x.shape, zero_point.dtype)
    if highest is None:
        return codes
    lowest = 0 if zero_point.dtype == torch.uint8 else -highest - 1
    limits = [torch.tensor(value, dtype=zero_point.dtype, device=x.device) for value in (lowest, highest)]
    return node('Clip', [codes, *limits], x.shape, zero_point.dtype)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """Values of codes; ``axis`` is the one that a 1-d scale runs along."""
    inputs = [codes, scale] if zero_point is None else [codes, scale, zero_point]
    attributes = {} if axis is None else {'axis': axis}
    return node('DequantizeLinear', inputs, codes.shape, torch.float32, **attributes)


def gemm(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(R, K) times (N, K) transposed plus (N,)."""
    return node('Gemm', [rows, weight, bias], (rows.shape[0], weight.shape[0]), torch.float32, transB=1)
