"""Suppression and RoI pooling as operators of torch with shapes known beforehand, so that a detector exports whole.

In torch they run on mmcv's functions; ``translations.py`` tells what nodes they become.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = -1


@torch.library.custom_op('mixaq::suppress', mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    """The best boxes that overlap with no better one of their group.

    Args:
        boxes: (G, N, 4) x1, y1, x2, y2 of each group (a class, a level).
        scores: (G, N).
        iou_threshold: a larger overlap suppresses.
        score_threshold: only larger scores count.
        limit: rows of the result.

    Returns:
        (limit, 2) group and box, best first; ``EMPTY`` where there are no more.
    """
    from mmcv.ops import nms

    found = []
    for group, (own, score) in enumerate(zip(boxes, scores, strict=True)):
        index = (score > score_threshold).nonzero().squeeze(1)
        if len(index):
            _, kept = nms(own[index].contiguous(), score[index].contiguous(), iou_threshold)
            index = index[kept]
            found.append(torch.stack((torch.full_like(index, group), index), dim=1))
    rows = torch.cat(found) if found else scores.new_zeros((0, 2), dtype=torch.long)
    order = scores[rows[:, 0], rows[:, 1]].argsort(descending=True, stable=True)[:limit]
    out = torch.full((limit, 2), EMPTY, dtype=torch.long, device=scores.device)
    out[: len(order)] = rows[order]
    return out


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int) -> Tensor:
    return scores.new_empty((limit, 2), dtype=torch.long)


@torch.library.custom_op('mixaq::pool_rois', mutates_args=())
def pool_rois(
    maps: list[Tensor], boxes: Tensor, levels: Tensor, scales: list[float], size: int, sampling: int
) -> Tensor:
    """RoIAlign (average, aligned) of each box on the map of its level.

    Args:
        maps: (1, C, H, W) of each level.
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        levels: (N,) int64.
        scales: of each map.
        size: side of the result.
        sampling: samples per bin and side, 0 for as many as the bin has pixels.

    Returns:
        (N, C, size, size).
    """
    from mmcv.ops import roi_align

    out = boxes.new_zeros((len(boxes), maps[0].shape[1], size, size))
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        own = (levels == level).nonzero().squeeze(1)
        if len(own):
            rois = torch.cat((boxes.new_zeros((len(own), 1)), boxes[own]), dim=1)
            out[own] = roi_align(x.contiguous(), rois, (size, size), scale, sampling, 'avg', True)
    return out


@pool_rois.register_fake
def _(maps: list[Tensor], boxes: Tensor, levels: Tensor, scales: list[float], size: int, sampling: int) -> Tensor:
    return boxes.new_empty((boxes.shape[0], maps[0].shape[1], size, size))
