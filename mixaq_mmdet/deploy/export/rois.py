"""RoI heads with shapes known beforehand: boxes of one or several stages, then masks."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

from .boxes import Best, Decoder, best_boxes, check_nms
from .operators import pool_rois


class Pooling(nn.Module):
    """RoIAlign on the map of each box's level, as ``SingleRoIExtractor``."""

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        layers = list(extractor.roi_layers)
        plain = isinstance(extractor, SingleRoIExtractor) and all(
            isinstance(layer, RoIAlign) and layer.pool_mode == 'avg' and layer.aligned for layer in layers
        )
        sizes = {tuple(layer.output_size) for layer in layers} if plain else set()
        if len(sizes) != 1 or len(set(*sizes)) != 1:
            raise ValueError(
                f'{type(extractor).__name__} does not export; SingleRoIExtractor with average, aligned, square '
                'RoIAlign does'
            )
        self.size = sizes.pop()[0]
        self.scales = [float(layer.spatial_scale) for layer in layers]
        self.sampling = layers[0].sampling_ratio
        self.finest = extractor.finest_scale

    def forward(self, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        """(N, C, size, size) of boxes (N, 4)."""
        count = len(self.scales)
        scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        levels = (scale / self.finest + 1e-6).log2().floor().clamp(min=0, max=count - 1).long()
        return pool_rois(list(maps[:count]), boxes, levels, self.scales, self.size, self.sampling)


class BoxStage(nn.Module):
    """One box head: maps and boxes to logits and deltas."""

    def __init__(self, extractor: Any, head: Any) -> None:
        super().__init__()
        if head.custom_cls_channels or not head.with_reg:
            raise ValueError(f'{type(head).__name__} with custom class channels or without regression does not export')
        self.pool, self.head = Pooling(extractor), head
        self.decode = Decoder(head.bbox_coder)
        self.agnostic = head.reg_class_agnostic

    def forward(self, maps: tuple[Tensor, ...], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(N, classes + 1) and (N, 4), or (N, classes * 4)."""
        return self.head(self.pool(maps, boxes))

    def refine(self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
        """The boxes (N, 4) of each row's best class."""
        if not self.agnostic:
            label = logits[:, :-1].argmax(1).view(-1, 1, 1).expand(-1, 1, 4)
            deltas = deltas.view(len(boxes), -1, 4).gather(1, label).squeeze(1)
        return self.decode(boxes, deltas, size)

    def of_classes(self, boxes: Tensor, deltas: Tensor, classes: int, size: Tensor) -> Tensor:
        """(classes, N, 4)."""
        deltas = deltas.view(len(boxes), -1, 4)
        decoded = self.decode(boxes.unsqueeze(1), deltas, size)
        return decoded.expand(-1, classes, -1).transpose(0, 1)


class RoIDetections(nn.Module):
    """Proposals to detections and masks.

    Args:
        head: mmdet's StandardRoIHead or CascadeRoIHead.
        cfg: its ``test_cfg``.
    """

    stages: Any
    masks: Any

    def __init__(self, head: Any, cfg: Any) -> None:
        super().__init__()
        self.threshold = check_nms(cfg['nms'], 'model.test_cfg.rcnn.nms')
        self.score_threshold, self.limit = float(cfg['score_thr']), cfg['max_per_img']
        heads, extractors = _stages(head.bbox_head), _stages(head.bbox_roi_extractor)
        self.stages = nn.ModuleList(BoxStage(*pair) for pair in zip(extractors, heads, strict=True))
        self.masks = None
        if head.with_mask:
            heads, extractors = _stages(head.mask_head), _stages(head.mask_roi_extractor)
            self.masks = nn.ModuleList(MaskStage(*pair) for pair in zip(extractors, heads, strict=True))

    def forward(self, maps: tuple[Tensor, ...], boxes: Tensor, size: Tensor) -> tuple[Best, Tensor | None]:
        """Boxes of all classes, and (limit, 28, 28) mask probabilities of those that are kept."""
        of_stages = []
        for number, stage in enumerate(self.stages):
            logits, deltas = stage(maps, boxes)
            of_stages.append(logits)
            if number + 1 < len(self.stages):
                boxes = stage.refine(boxes, logits, deltas, size)
        logits = of_stages[0] if len(of_stages) == 1 else torch.stack(of_stages).mean(0)
        scores = logits.softmax(-1)[:, :-1].t()
        decoded = stage.of_classes(boxes, deltas, len(scores), size)
        best = best_boxes(decoded, scores, self.threshold, self.score_threshold, self.limit)
        if self.masks is None:
            return best, None
        found = [stage(maps, best.boxes, best.groups) for stage in self.masks]
        return best, found[0] if len(found) == 1 else torch.stack(found).mean(0)


class MaskStage(nn.Module):
    """One mask head: maps, boxes and classes to (N, 28, 28) probabilities."""

    def __init__(self, extractor: Any, head: Any) -> None:
        super().__init__()
        if not isinstance(head, FCNMaskHead):
            raise ValueError(f'{type(head).__name__} does not export; FCNMaskHead does')
        self.pool, self.head = Pooling(extractor), head

    def forward(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """The mask of each box's class."""
        masks = self.head(self.pool(maps, boxes)).sigmoid()
        if self.head.class_agnostic:
            return masks[:, 0]
        rows = torch.arange(len(boxes), device=boxes.device) * masks.shape[1] + labels.clamp(min=0)
        return masks.flatten(0, 1).index_select(0, rows)


def _stages(parts: Any) -> list[Any]:
    return list(parts) if isinstance(parts, nn.ModuleList) else [parts]
