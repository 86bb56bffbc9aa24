"""Heads of mmdet whose last steps - NMS, pasting of masks - are those of the portable kernels.

Each is a mixin over a stock head: what a subclass has changed about these steps itself is not replaced (``SWAPS``).
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmdet.structures.bbox import get_box_tensor, get_box_wh, scale_boxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..kernels.portable import load_portable
from .masks import paste_masks
from .nms import batched_nms, multiclass_nms
from .roi_extractor import KernelRoIExtractor

Config = Any


class _Combined:
    """A class that is made when it is needed: pickles name what it is made of."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Like any object's, but that no class is looked up by its name."""
        state = tuple(super().__reduce_ex__(protocol))[2:]
        return (_made_again, type(self).__bases__, *state)


class KernelBoxes(_Combined):
    """A box head: NMS over classes."""

    stock: ClassVar[type] = BBoxHead
    steps: ClassVar[tuple[str, ...]] = ('_predict_by_feat_single',)

    def _predict_by_feat_single(
        self,
        roi: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor | None,
        img_meta: dict[str, Any],
        rescale: bool = False,
        rcnn_test_cfg: Config | None = None,
    ) -> InstanceData:
        """Detections (K,) of an image from (N,) RoIs; without ``rcnn_test_cfg``, boxes and scores of all RoIs."""
        predict = super()._predict_by_feat_single  # type: ignore[misc]
        if rcnn_test_cfg is None or not len(roi):
            return predict(roi, cls_score, bbox_pred, img_meta, rescale, rcnn_test_cfg)
        found = predict(roi, cls_score, bbox_pred, img_meta, rescale, None)
        limit = rcnn_test_cfg.max_per_img
        dets, labels = multiclass_nms(found.bboxes, found.scores, rcnn_test_cfg.score_thr, rcnn_test_cfg.nms, limit)
        return InstanceData(bboxes=dets[:, :-1], scores=dets[:, -1], labels=labels)


class _DenseBoxes(_Combined):
    """A dense head: the best of each level without sorting all of them, NMS over classes or levels."""

    selects: ClassVar[type]
    """Whose way of reading the maps allows to leave all but the best anchors out before."""

    def _predict_by_feat_single(
        self,
        cls_score_list: list[Tensor],
        bbox_pred_list: list[Tensor],
        score_factor_list: list[Tensor | None],
        mlvl_priors: list[Tensor],
        img_meta: dict[str, Any],
        cfg: Config | None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> InstanceData:
        """Boxes of an image from its maps, (anchors * classes, H, W) and (anchors * code, H, W) of each level."""
        wanted = (cfg or self.test_cfg).get('nms_pre', -1)  # type: ignore[attr-defined]
        maps = (cls_score_list, bbox_pred_list, score_factor_list, mlvl_priors)
        if wanted > 1 and self._reads_as_stock():
            classes = self.cls_out_channels  # type: ignore[attr-defined]
            best = [_best(*level, classes, wanted) for level in zip(*maps, strict=True)]
            maps = tuple(list(parts) for parts in zip(*best, strict=True))  # type: ignore[assignment]
        return super()._predict_by_feat_single(*maps, img_meta, cfg, rescale, with_nms)  # type: ignore[misc]

    def _reads_as_stock(self) -> bool:
        step = '_predict_by_feat_single'
        if getattr(type(self).__bases__[-1], step) is not getattr(self.selects, step):
            return False
        custom = getattr(self.loss_cls, 'custom_cls_channels', False)  # type: ignore[attr-defined]
        return self.use_sigmoid_cls and not custom  # type: ignore[attr-defined]

    def _suppressed(
        self, results: InstanceData, ids: str, cfg: Config, rescale: bool, img_meta: dict[str, Any] | None
    ) -> InstanceData:
        """The best ``cfg.max_per_img`` of ``results``, boxes of one ``ids`` having suppressed each other."""
        if rescale and img_meta is not None:
            results.bboxes = scale_boxes(results.bboxes, [1 / s for s in img_meta['scale_factor']])
        if cfg.get('min_bbox_size', -1) >= 0:
            width, height = get_box_wh(results.bboxes)
            results = results[(width > cfg.min_bbox_size) & (height > cfg.min_bbox_size)]
        boxes = get_box_tensor(results.bboxes)
        dets, keep = batched_nms(boxes, results.scores, results[ids], cfg.nms, limit=cfg.max_per_img)
        results = results[keep]
        results.scores = dets[:, -1]
        return results


class KernelProposals(_DenseBoxes):
    """An RPN: NMS over levels."""

    stock: ClassVar[type] = RPNHead
    selects: ClassVar[type] = RPNHead
    steps: ClassVar[tuple[str, ...]] = ('_bbox_post_process', '_predict_by_feat_single')

    def _bbox_post_process(
        self,
        results: InstanceData,
        cfg: Config,
        rescale: bool = False,
        with_nms: bool = True,
        img_meta: dict[str, Any] | None = None,
    ) -> InstanceData:
        """Proposals (K,) of an image, best first, from candidates (N,) of all levels."""
        if not with_nms or not len(results):
            return super()._bbox_post_process(results, cfg, rescale, with_nms, img_meta)  # type: ignore[misc]
        results = self._suppressed(results, 'level_ids', cfg, rescale, img_meta)
        del results.level_ids
        results.labels = torch.zeros(len(results), dtype=torch.int64, device=results.scores.device)
        return results


def _best(
    scores: Tensor, boxes: Tensor, factors: Tensor | None, priors: Tensor, classes: int, wanted: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The anchors of a level that can hold one of its ``wanted`` best scores, as maps of one column, and their priors.

    Those are among as many anchors whose best class is highest.
    """
    of_anchors = scores.permute(1, 2, 0).reshape(-1, classes)
    if len(of_anchors) <= wanted:
        return scores, boxes, factors, priors
    # in the order of the map: of equal scores the first one comes first
    chosen = of_anchors.amax(1).topk(wanted, sorted=False).indices.sort().values

    def column(maps: Tensor) -> Tensor:
        return maps.permute(1, 2, 0).reshape(len(of_anchors), -1)[chosen].t().unsqueeze(-1)

    return column(scores), column(boxes), None if factors is None else column(factors), priors[chosen]


class KernelDetections(_DenseBoxes):
    """A dense head of a one-stage detector: NMS over classes."""

    stock: ClassVar[type] = BaseDenseHead
    selects: ClassVar[type] = BaseDenseHead
    steps: ClassVar[tuple[str, ...]] = ('_bbox_post_process',)

    def _bbox_post_process(
        self,
        results: InstanceData,
        cfg: Config,
        rescale: bool = False,
        with_nms: bool = True,
        img_meta: dict[str, Any] | None = None,
    ) -> InstanceData:
        """Detections (K,) of an image, best first, from candidates (N,) of all levels."""
        if not with_nms or not len(results):
            return super()._bbox_post_process(results, cfg, rescale, with_nms, img_meta)  # type: ignore[misc]
        if 'score_factors' in results:
            results.scores = results.scores * results.pop('score_factors')
        return self._suppressed(results, 'labels', cfg, rescale, img_meta)


class KernelMasks(_Combined):
    """A mask head: pasting."""

    stock: ClassVar[type] = FCNMaskHead
    steps: ClassVar[tuple[str, ...]] = ('_predict_by_feat_single',)

    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict[str, Any],
        rcnn_test_cfg: Config,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor:
        """Masks (N, H, W) bool of an image from (N, classes, h, w); boxes are taken to its size in place, as stock."""
        kernels, _ = load_portable()
        threshold = rcnn_test_cfg.mask_thr_binary
        if kernels is None or activate_map or threshold < 0 or bboxes.device.type != 'cpu':
            predict = super()._predict_by_feat_single  # type: ignore[misc]
            return predict(mask_preds, bboxes, labels, img_meta, rcnn_test_cfg, rescale, activate_map)
        height, width = img_meta['ori_shape'][:2]
        scale = bboxes.new_tensor(img_meta['scale_factor'])
        if rescale:
            bboxes /= scale.repeat(2)
        else:
            width, height = (round(side * by.item()) for side, by in zip((width, height), scale, strict=True))
        if not self.class_agnostic:  # type: ignore[attr-defined]
            mask_preds = mask_preds[torch.arange(len(labels)), labels]
        masks = mask_preds.reshape(len(labels), *mask_preds.shape[-2:]).float().sigmoid()
        return paste_masks(kernels, masks, bboxes.float(), (height, width), threshold)


class KeptPriors(AnchorGenerator):
    """Anchors that are kept for the sizes of maps that came last; nobody writes to them."""

    KEPT: ClassVar[int] = 4

    def grid_priors(
        self, featmap_sizes: list[Any], dtype: torch.dtype = torch.float32, device: Any = 'cuda'
    ) -> list[Tensor]:
        """(anchors, 4) of each level."""
        kept: dict[Any, list[Tensor]] = self.__dict__.setdefault('_kept', {})
        key = (tuple(map(tuple, featmap_sizes)), dtype, torch.device(device))
        found = kept.pop(key, None)
        if found is None:
            found = super().grid_priors(featmap_sizes, dtype, device)
        kept[key] = found  # the last of the dictionary
        while len(kept) > self.KEPT:
            kept.pop(next(iter(kept)))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != '_kept'}


SWAPS: tuple[Any, ...] = (KernelBoxes, KernelProposals, KernelDetections, KernelMasks)


def use_kernels(detector: nn.Module) -> list[str]:
    """Let a detector's RoI extractors, NMS and mask pasting run by the portable kernels, in place.

    Classes become subclasses of what they were; nothing of a checkpoint changes. Heads that do these steps in a way of
    their own keep it.

    Returns:
        A line for each module that has changed.
    """
    lines = []
    for path, module in detector.named_modules():
        kind: Any = type(module)
        if kind is SingleRoIExtractor:
            module.__class__ = KernelRoIExtractor
        elif (mixin := _mixin_of(kind)) is not None:
            module.__class__ = _combined(mixin, kind)  # type: ignore[arg-type]
        else:
            continue
        if type(getattr(module, 'prior_generator', None)) is AnchorGenerator:
            module.prior_generator.__class__ = KeptPriors
        lines.append(f'{path}: {kind.__name__} as {type(module).__name__}')
    return lines


def _mixin_of(kind: type) -> Any | None:
    """The mixin whose step ``kind`` does as the stock class does it."""
    for mixin in SWAPS:
        if issubclass(kind, mixin.stock) and all(
            getattr(kind, step) is getattr(mixin.stock, step) for step in mixin.steps
        ):
            return mixin
    return None


@cache
def _combined(mixin: Any, kind: Any) -> type:
    return type(f'Kernel{kind.__name__}', (mixin, kind), {'__module__': __name__})


def _made_again(mixin: Any, kind: Any) -> Any:
    return object.__new__(_combined(mixin, kind))
