"""What torch's exporter is told about operators that it has no translation for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import operators
from .operators import EMPTY


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operators and the functions that write their nodes."""
    assert operators  # importing registers
    return {
        torch.ops.aten.sort.stable: _sort_stable,
        torch.ops.mixaq.suppress.default: _suppress,
        torch.ops.mixaq.pool_rois.default: _pool_rois,
    }


def _opset() -> Any:
    from onnxscript import opset21

    return opset21


def _sort_stable(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """TopK over everything: among equals the lower index comes first, which is what stable means."""
    op = _opset()
    count = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def _suppress(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, limit: int) -> Any:
    """NonMaxSuppression, then the best of all groups; rows of nothing stand behind them, so that enough are there."""
    op = _opset()
    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[score_threshold]),
    )
    rows = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    nothing = op.Expand(op.Constant(value_ints=[EMPTY]), op.Constant(value_ints=[limit, 2]))
    of_rows = op.GatherND(scores, rows)
    lowest = op.Expand(op.Constant(value_floats=[-1.0]), op.Constant(value_ints=[limit]))
    _, best = op.TopK(op.Concat(of_rows, lowest, axis=0), op.Constant(value_ints=[limit]), axis=0)
    return op.Gather(op.Concat(rows, nothing, axis=0), best, axis=0)


def _pool_rois(maps: Sequence[Any], boxes: Any, levels: Any, scales: Sequence[float], size: int, sampling: int) -> Any:
    """RoiAlign of each level's own boxes, put back into the order of the boxes."""
    op = _opset()
    pooled, places = [], []
    flat = op.Constant(value_ints=[-1])
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        own = op.Reshape(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), flat)
        pooled.append(
            op.RoiAlign(
                x,
                op.Gather(boxes, own, axis=0),
                op.Mul(own, op.Constant(value_ints=[0])),
                output_height=size,
                output_width=size,
                sampling_ratio=sampling,
                spatial_scale=float(scale),
                mode='avg',
                coordinate_transformation_mode='half_pixel',
            )
        )
        places.append(own)
    if len(pooled) == 1:
        return pooled[0]
    _, order = op.TopK(op.Concat(*places, axis=0), op.Shape(levels), axis=0, largest=0, sorted=1)
    return op.Gather(op.Concat(*pooled, axis=0), order, axis=0)
