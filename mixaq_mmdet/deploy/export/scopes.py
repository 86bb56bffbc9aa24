"""What of a model is exported: its backbone, its neck too, or the whole detector."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.detectors import RetinaNet, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin

from .dense import DenseDetections, Proposals
from .image_input import BytesInput, FloatInput
from .rois import RoIDetections

SCOPES = ('backbone', 'neck', 'detector')
EXPORTED = 'Mask R-CNN, Faster R-CNN, Cascade R-CNN (with masks or without) and RetinaNet'


class MapsGraph(nn.Module):
    """Image to feature maps.

    Args:
        image: the input.
        backbone: gives the maps.
        neck: is called with them; None for the backbone's own.
    """

    def __init__(self, image: FloatInput | BytesInput, backbone: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.image, self.backbone, self.neck = image, backbone, neck

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps of a normalised image (1, 3, H, W)."""
        maps = tuple(self.backbone(x))
        return maps if self.neck is None else tuple(self.neck(maps))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(1, C, H, W) of each level."""
        return self.maps(self.image(*inputs)[0])

    def output_names(self) -> list[str]:
        """c2 and on for a backbone, p2 and on for a neck, by stride."""
        with torch.no_grad():
            count = len(self(*self.image.examples().values()))
        first = 2 + min(getattr(self.backbone, 'out_indices', (0,))) if self.neck is None else 2
        return [f'{"c" if self.neck is None else "p"}{first + level}' for level in range(count)]


class DetectorGraph(MapsGraph):
    """Image to detections: ``dets`` (N, 5), ``labels`` (N,), and ``masks`` (N, 28, 28) where the detector has them.

    Rows behind the last detection are zero, their label is -1. Masks are probabilities inside their boxes.
    """

    def __init__(self, image: FloatInput | BytesInput, detector: Any) -> None:
        super().__init__(image, detector.backbone, detector.neck if detector.with_neck else None)
        check_detector(detector)
        with torch.no_grad():
            maps = self.maps(torch.zeros(1, 3, *image.shape))
        sizes = [(int(x.shape[-2]), int(x.shape[-1])) for x in maps]
        cfg = detector.test_cfg
        self.proposals: Any = None
        self.rois: Any = None
        self.dense: Any = None
        if isinstance(detector, TwoStageDetector):
            self.proposals = Proposals(detector.rpn_head, cfg.rpn, sizes, 'model.test_cfg.rpn')
            self.rois = RoIDetections(detector.roi_head, cfg.rcnn)
        else:
            self.dense = DenseDetections(detector.bbox_head, cfg, sizes, 'model.test_cfg')

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Detections of one image."""
        x, size = self.image(*inputs)
        maps = self.maps(x)
        if self.dense is not None:
            best, masks = self.dense(maps, size), None
        else:
            best, masks = self.rois(maps, self.proposals(maps, size), size)
        found = torch.cat((best.boxes, best.scores.unsqueeze(1)), dim=1), best.groups
        return found if masks is None else (*found, masks)

    def output_names(self) -> list[str]:
        """As fixed."""
        return ['dets', 'labels', *(['masks'] if self.rois is not None and self.rois.masks is not None else [])]


def check_detector(detector: Any) -> None:
    """A ValueError unless the whole detector exports."""
    two_stage = isinstance(detector, TwoStageDetector) and detector.with_rpn
    if two_stage:
        heads = type(detector.rpn_head) is RPNHead and type(detector.roi_head) in (
            StandardRoIHead,
            CascadeRoIHead,
        )
    else:
        heads = isinstance(detector, RetinaNet) and type(detector.bbox_head) is RetinaHead
    if not heads:
        raise ValueError(
            f'scope="detector" exports {EXPORTED}; {type(detector).__name__} exports with scope="neck" or "backbone"'
        )


def build_graph(model: Any, scope: str, image: FloatInput | BytesInput) -> MapsGraph:
    """The graph of a scope.

    Raises:
        ValueError: for an unknown scope, and one that the model does not have.
    """
    if scope not in SCOPES:
        raise ValueError(f'scope={scope!r} is unknown; use one of {list(SCOPES)}')
    bare = isinstance(model, TwoBranchSwin) or not hasattr(model, 'backbone')
    if bare and scope != 'backbone':
        raise ValueError(
            f'scope={scope!r} needs a detector, and this is a {type(model).__name__}; use scope="backbone"'
        )
    if scope == 'backbone':
        return MapsGraph(image, model if bare else model.backbone)
    if scope == 'neck':
        if not getattr(model, 'with_neck', False):
            raise ValueError(f'scope="neck": {type(model).__name__} has none; use scope="backbone"')
        return MapsGraph(image, model.backbone, model.neck)
    return DetectorGraph(image, model)
