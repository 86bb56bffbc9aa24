"""What a two-stage detector says about fixed regions: RPN objectness, class logits and mask logits.

With the proposals of one forward held, two models can be compared logit by logit: nothing depends on which boxes
survive suppression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures.bbox import bbox2roi, bbox_overlaps
from torch import Tensor, nn


@dataclass(frozen=True)
class Regions:
    """Boxes of one image that a model is asked about: ``rois`` (n, 5) for classes, ``mask_rois`` (m, 5) for masks."""

    rois: Tensor
    mask_rois: Tensor


@dataclass(frozen=True)
class Logits:
    """A model's answers: objectness (anchors, ...), classes (n, classes + 1) per head, masks (m, classes, s, s)."""

    objectness: Tensor
    classes: tuple[Tensor, ...]
    masks: Tensor | None


def check_two_stage(detector: nn.Module) -> None:
    """Raise a ValueError unless the detector has an RPN and RoI heads."""
    if not (getattr(detector, 'with_rpn', False) and getattr(detector, 'with_roi_head', False)):
        raise ValueError(
            f'model.type={type(detector).__name__} has no RPN with RoI heads; relevance and the KL proxy need a '
            'two-stage detector such as MaskRCNN or CascadeRCNN (for others use --metric ap)'
        )


@torch.no_grad()
def regions(detector: Any, features: tuple[Tensor, ...], samples: list[Any], number: int, masks: int) -> Regions:
    """The best proposals of the RPN, the first ``masks`` of them also for masks."""
    found = detector.rpn_head.predict(features, samples, rescale=False)[0]
    boxes = found.bboxes[:number]
    return Regions(bbox2roi([boxes]), bbox2roi([boxes[:masks]]))


def logits(detector: Any, features: tuple[Tensor, ...], asked: Regions) -> Logits:
    """What a detector says about ``asked``, from the features behind its neck."""
    scores = detector.rpn_head(features)[0]
    objectness = torch.cat([score.permute(0, 2, 3, 1).reshape(-1) for score in scores])
    masks = None
    if detector.roi_head.with_mask:
        masks = _mask_logits(detector.roi_head, features, asked.mask_rois)
    return Logits(objectness, class_logits(detector, features, asked.rois), masks)


def class_logits(detector: Any, features: tuple[Tensor, ...], rois: Tensor) -> tuple[Tensor, ...]:
    """Class logits (n, classes + 1) of every box head; a cascade has several, all asked about the same boxes."""
    head = detector.roi_head
    if isinstance(head.bbox_head, nn.ModuleList):
        return tuple(head._bbox_forward(stage, features, rois)['cls_score'] for stage in range(len(head.bbox_head)))
    return (head._bbox_forward(features, rois)['cls_score'],)


def matched_logits(
    detector: Any, features: tuple[Tensor, ...], samples: list[Any], iou: float = 0.5, proposals: int = 100
) -> Tensor | None:
    """Sum of the logits of the right class over the RoIs that match an object; the objects' own boxes are RoIs, too.

    Returns:
        A scalar with a gradient to ``features``, or None for an image without objects.
    """
    sample = samples[0]
    boxes, labels = object_boxes(sample)
    if not len(boxes):
        return None
    detached = tuple(feature.detach() for feature in features)
    proposed = regions(detector, detached, samples, proposals, 0).rois[:, 1:]
    candidates = torch.cat([boxes.to(proposed), proposed])
    overlaps, owners = bbox_overlaps(candidates, boxes.to(proposed)).max(dim=1)
    matched = overlaps >= iou
    rois = bbox2roi([candidates[matched]])
    picked = labels.to(owners.device)[owners[matched]]
    return sum(  # type: ignore[return-value]
        scores.gather(1, picked[:, None]).sum() for scores in class_logits(detector, features, rois)
    )


def object_boxes(sample: Any) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) and labels (n,) of an image's objects, in the pixels of the network's input."""
    objects = sample.get('gt_instances')
    if objects is None or 'bboxes' not in objects:
        raise ValueError(
            'the images come without objects; add LoadAnnotations to test_dataloader.dataset.pipeline, before '
            'PackDetInputs'
        )
    boxes = objects.bboxes
    boxes = boxes.tensor if hasattr(boxes, 'tensor') else boxes
    # test pipelines read annotations behind the resizing, so that boxes are in pixels of the file
    scale = sample.metainfo.get('scale_factor', (1.0, 1.0))
    return boxes * boxes.new_tensor(tuple(scale)[:2]).repeat(2), objects.labels


def _mask_logits(head: Any, features: tuple[Tensor, ...], rois: Tensor) -> Tensor:
    if isinstance(head.mask_head, nn.ModuleList):
        return head._mask_forward(len(head.mask_head) - 1, features, rois)['mask_preds']
    return head._mask_forward(features, rois)['mask_preds']
