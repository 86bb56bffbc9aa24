"""Dense heads with shapes known beforehand: RPN's proposals, RetinaNet's detections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .boxes import Best, Decoder, best_boxes, check_nms, large_enough


class _AnchorHead(nn.Module):
    """Maps to candidates of each level, the most certain ones first.

    Args:
        head: mmdet's anchor head.
        cfg: its ``test_cfg``.
        sizes: (height, width) of each map that it sees.
        field: where a user wrote ``cfg``, for messages.
    """

    def __init__(self, head: Any, cfg: Any, sizes: list[tuple[int, int]], field: str) -> None:
        super().__init__()
        self.head = head
        self.decode = Decoder(head.bbox_coder)
        self.candidates = cfg.get('nms_pre', -1)
        self.threshold = check_nms(cfg['nms'], f'{field}.nms')
        self.limit = cfg['max_per_img']
        self.smallest = cfg.get('min_bbox_size', -1)
        anchors = head.prior_generator.grid_priors(sizes, device='cpu')
        for level, priors in enumerate(anchors):
            self.register_buffer(f'priors{level}', priors)

    def _levels(self, maps: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Scores (N, classes), deltas (N, 4) and priors (N, 4) of each level."""
        levels = []
        for level, (scores, deltas) in enumerate(zip(*self.head(maps), strict=True)):
            scores = scores[0].permute(1, 2, 0).reshape(-1, self.head.cls_out_channels)
            scores = scores.sigmoid() if self.head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4)
            levels.append((scores, deltas, getattr(self, f'priors{level}')))
        return levels

    def _kept(self, number: int) -> int:
        """How many of so many candidates go on."""
        return min(self.candidates, number) if self.candidates > 0 else number


class Proposals(_AnchorHead):
    """RPN: maps to (limit, 4) boxes, best first; what is behind the last is zero."""

    def forward(self, maps: tuple[Tensor, ...], size: Tensor) -> Tensor:
        """Decode, suppress within levels, keep the best."""
        boxes, scores = [], []
        levels = self._levels(maps)
        most = max(self._kept(len(scores)) for scores, _, _ in levels)
        for score, deltas, priors in levels:
            best = score[:, 0].sort(descending=True, stable=True)
            index = best.indices[: self._kept(len(score))]
            decoded = self.decode(priors.index_select(0, index), deltas.index_select(0, index), size)
            kept = large_enough(decoded, best.values[: len(index)], self.smallest)
            missing = most - len(index)
            boxes.append(nn.functional.pad(decoded, (0, 0, 0, missing)))
            scores.append(nn.functional.pad(kept, (0, missing), value=-1.0))
        return best_boxes(torch.stack(boxes), torch.stack(scores), self.threshold, -0.5, self.limit).boxes


class DenseDetections(_AnchorHead):
    """RetinaNet: maps to the detections of all classes."""

    def __init__(self, head: Any, cfg: Any, sizes: list[tuple[int, int]], field: str) -> None:
        super().__init__(head, cfg, sizes, field)
        self.score_threshold = float(cfg.get('score_thr', 0))

    def forward(self, maps: tuple[Tensor, ...], size: Tensor) -> Best:
        """Candidates of a level are pairs of an anchor and a class."""
        boxes, scores, labels = [], [], []
        for score, deltas, priors in self._levels(maps):
            classes = score.shape[1]
            flat = torch.where(score > self.score_threshold, score, -1.0).flatten()
            best = flat.sort(descending=True, stable=True)
            index = best.indices[: self._kept(len(priors) * classes)]
            anchor = index // classes
            decoded = self.decode(priors.index_select(0, anchor), deltas.index_select(0, anchor), size)
            boxes.append(decoded)
            scores.append(large_enough(decoded, best.values[: len(index)], self.smallest))
            labels.append(index % classes)
        groups = torch.cat(labels)[None]
        return best_boxes(
            torch.cat(boxes)[None], torch.cat(scores)[None], self.threshold, self.score_threshold, self.limit, groups
        )
