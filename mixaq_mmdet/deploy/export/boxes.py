"""Boxes with shapes known beforehand: decoding, and the best of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

from .operators import EMPTY, suppress


class Decoder:
    """``DeltaXYWHBBoxCoder.decode`` in operations that write nothing in place.

    Args:
        coder: of a head.

    Raises:
        ValueError: for another coder.
    """

    def __init__(self, coder: Any) -> None:
        if type(coder) is not DeltaXYWHBBoxCoder or coder.add_ctr_clamp:
            raise ValueError(
                f'bbox_coder={type(coder).__name__} does not export; DeltaXYWHBBoxCoder without add_ctr_clamp does'
            )
        self.means = [float(value) for value in coder.means]
        self.stds = [float(value) for value in coder.stds]
        self.clips = bool(coder.clip_border)
        self.largest = abs(math.log(16 / 1000))

    def __call__(self, priors: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
        """Boxes (..., 4) of priors (..., 4) and deltas (..., 4), inside an image of ``size`` (2,): height, width."""
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        centre = (priors[..., :2] + priors[..., 2:]) * 0.5
        side = priors[..., 2:] - priors[..., :2]
        centre = centre + side * deltas[..., :2]
        half = side * deltas[..., 2:].clamp(min=-self.largest, max=self.largest).exp() * 0.5
        boxes = torch.cat((centre - half, centre + half), dim=-1)
        if not self.clips:
            return boxes
        return torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2))


class Best(NamedTuple):
    """The best boxes of an image, best first; rows behind the last are zero.

    Attributes:
        boxes: (limit, 4).
        scores: (limit,).
        groups: (limit,) class or level; ``EMPTY`` behind the last.
    """

    boxes: Tensor
    scores: Tensor
    groups: Tensor


def best_boxes(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    limit: int,
    groups: Tensor | None = None,
) -> Best:
    """Suppression within groups, with the offsets and roundings of mmcv's ``batched_nms``.

    Args:
        boxes: (G, N, 4).
        scores: (G, N).
        iou_threshold: a larger overlap suppresses.
        score_threshold: only larger scores count.
        limit: how many boxes.
        groups: (G, N) group of each box; the first dimension without.
    """
    if groups is None:
        groups = torch.arange(len(boxes), device=boxes.device).view(-1, 1).expand(scores.shape)
    counts = scores > score_threshold
    furthest = torch.where(counts.unsqueeze(-1), boxes, torch.zeros_like(boxes)).amax((0, 1, 2))
    apart = boxes + (groups.to(boxes) * (furthest + 1)).unsqueeze(-1)
    rows = suppress(apart, scores, iou_threshold, score_threshold, limit)
    found = rows[:, 0] != EMPTY
    flat = (rows[:, 0] * scores.shape[1] + rows[:, 1]).clamp(min=0)
    return Best(
        torch.where(found.unsqueeze(1), boxes.reshape(-1, 4).index_select(0, flat), 0.0),
        torch.where(found, scores.reshape(-1).index_select(0, flat), 0.0),
        torch.where(found, groups.reshape(-1).index_select(0, flat), EMPTY),
    )


def large_enough(boxes: Tensor, scores: Tensor, smallest: float) -> Tensor:
    """Scores (...) of boxes (..., 4), -1 where a side is not larger than ``smallest``; below 0 all pass."""
    if smallest < 0:
        return scores
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.where((sides > smallest).all(-1), scores, -1.0)


def check_nms(config: Any, field: str) -> float:
    """The IoU threshold of plain NMS; a ValueError for another kind."""
    options = dict(config)
    kind = options.pop('type', 'nms')
    threshold = options.pop('iou_threshold', options.pop('iou_thr', None))
    options.pop('split_thr', None)
    if kind != 'nms' or threshold is None or options:
        raise ValueError(f'{field}={dict(config)} does not export; dict(type="nms", iou_threshold=0.5) does')
    return float(threshold)
