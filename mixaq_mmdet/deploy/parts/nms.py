"""Non-maximum suppression within classes or levels by the portable kernels, in place of mmcv's and mmdet's functions.

``batched_nms`` and ``multiclass_nms`` take and return what ``mmcv.ops.batched_nms`` and mmdet's ``multiclass_nms`` do:
the same boxes, best first, overlaps computed after the same roundings, class offsets added in float32 as there. Of
equal scores the lower index comes first; mmcv sorts them in no order of its own. What the kernels do not know is left
to the originals: other kinds of NMS, an ``offset``, rotated boxes, infinite numbers, other devices and types.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.ops import batched_nms as mmcv_batched_nms
from mmdet.models.layers import multiclass_nms as mmdet_multiclass_nms
from torch import Tensor

from ..kernels.portable import load_portable
from ..kernels.structures import Nms

_KNOWN = {'type', 'iou_threshold', 'iou_thr', 'score_threshold', 'max_num', 'split_thr', 'class_agnostic'}
_NO_LIMIT = 2**62
_SPLIT = 10000  # mmcv's default


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    nms_cfg: Mapping[str, Any] | None,
    class_agnostic: bool = False,
    limit: int = -1,
) -> tuple[Tensor, Tensor]:
    """Suppress boxes that overlap with a better one of their class.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        scores: (N,).
        idxs: (N,) int64, classes or levels.
        nms_cfg: as mmcv's; None sorts only.
        class_agnostic: whether all boxes are of one class.
        limit: how many of the best are wanted; -1 for all. The rest is not looked for.

    Returns:
        (K, 5) boxes with scores, best first, and (K,) their indices.
    """
    keep = None
    if idxs.shape == scores.shape == boxes.shape[:1] and boxes.shape[1:] == (4,) and idxs.dtype == torch.int64:
        settings = _settings(nms_cfg, class_agnostic, limit)
        if settings is not None and _readable(boxes, scores, idxs):
            boxes, scores, idxs = boxes.contiguous(), scores.contiguous(), idxs.contiguous()
            call = Nms(
                boxes=boxes.data_ptr(),
                scores=scores.data_ptr(),
                labels=idxs.data_ptr(),
                rows=len(boxes),
                columns=1,
                box_row=4,
                score_row=1,
                least=-torch.inf,
                **settings,
            )
            keep = _run(call)
    if keep is None:
        dets, keep = mmcv_batched_nms(boxes, scores, idxs, nms_cfg, class_agnostic)
        return (dets, keep) if limit < 0 else (dets[:limit], keep[:limit])
    return torch.cat([boxes[keep], scores[keep, None]], 1), keep


def multiclass_nms(
    multi_bboxes: Tensor,
    multi_scores: Tensor,
    score_thr: float,
    nms_cfg: Mapping[str, Any],
    max_num: int = -1,
    score_factors: Tensor | None = None,
    return_inds: bool = False,
    box_dim: int = 4,
) -> tuple[Tensor, ...]:
    """Boxes of all classes that are above a score and not suppressed.

    Args:
        multi_bboxes: (N, classes * 4) or (N, 4).
        multi_scores: (N, classes + 1), background last.
        score_thr: least score.
        nms_cfg: as mmcv's.
        max_num: how many of the best are wanted; -1 for all.
        score_factors: (N,), which scores are multiplied with after ``score_thr``; left to mmdet.
        return_inds: whether indices are wanted.
        box_dim: numbers of a box.

    Returns:
        (K, 5) boxes with scores, (K,) labels, and if wanted (K,) row * classes + class.
    """
    classes = multi_scores.shape[1] - 1
    settings = _settings(nms_cfg, False, max_num if max_num > 0 else -1)
    keep = None
    known = score_factors is None and box_dim == 4 and classes and multi_bboxes.shape[1] in (4, 4 * classes)
    if known and settings is not None and _readable(multi_bboxes, multi_scores):
        boxes, scores = multi_bboxes.contiguous(), multi_scores.contiguous()
        of_class = 4 if boxes.shape[1] > 4 else 0
        call = Nms(
            boxes=boxes.data_ptr(),
            scores=scores.data_ptr(),
            rows=len(boxes),
            columns=classes,
            box_row=boxes.shape[1],
            box_column=of_class,
            score_row=classes + 1,
            least=score_thr,
            **settings,
        )
        keep = _run(call)
    if keep is None:
        return mmdet_multiclass_nms(
            multi_bboxes, multi_scores, score_thr, nms_cfg, max_num, score_factors, return_inds, box_dim
        )
    rows, labels = keep // classes, keep % classes
    kept = boxes[rows] if not of_class else boxes.view(len(boxes), classes, 4)[rows, labels]
    dets = torch.cat([kept, scores[rows, labels, None]], 1)
    return (dets, labels, keep) if return_inds else (dets, labels)


def _settings(nms_cfg: Mapping[str, Any] | None, class_agnostic: bool, limit: int) -> dict[str, Any] | None:
    """What ``nms_cfg`` asks for, or None if that is more than the kernels do."""
    if nms_cfg is None or not nms_cfg.keys() <= _KNOWN or nms_cfg.get('type', 'nms') != 'nms':
        return None
    threshold = nms_cfg.get('iou_threshold', nms_cfg.get('iou_thr'))
    if threshold is None or threshold < 0:
        return None
    limits = [wanted for wanted in (limit, nms_cfg.get('max_num', -1)) if wanted > 0 or wanted == limit >= 0]
    return {
        'threshold': threshold,
        'nms_least': nms_cfg.get('score_threshold', 0),
        'split': nms_cfg.get('split_thr', _SPLIT),
        'one_class': bool(nms_cfg.get('class_agnostic', class_agnostic)),
        'limit': min(limits, default=_NO_LIMIT),
    }


def _readable(*tensors: Tensor) -> bool:
    """Whether these are what the kernels read, and no trace that would not hold them."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return False
    floats = all(x.dtype == torch.float32 for x in tensors[:2])
    return floats and all(x.device.type == 'cpu' for x in tensors) and load_portable()[0] is not None


def _run(call: Nms) -> Tensor | None:
    """Indices of what is kept; None for numbers that are not finite."""
    kernels, reason = load_portable()
    if kernels is None:
        raise ValueError(f'no portable kernels: {reason}')
    kept = torch.empty(min(call.rows * call.columns, call.limit), dtype=torch.int64)
    count = kernels.call('nms', ctypes.addressof(call), kept.data_ptr())
    return None if count < 0 else kept[:count]
