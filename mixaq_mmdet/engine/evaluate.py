"""Evaluate a detector on a COCO-style set: metrics in full precision and what every image contributed to them.

``evaluate`` takes a config with a checkpoint (the stock Runner is built, so hooks such as calibration take part) or a
detector that is already loaded (nothing is rebuilt: a search calls it hundreds of times). Both use mmdet's own data
pipeline, ``test_step`` and pycocotools, and both work under torchrun, where every rank gets the whole result.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from .matches import IOU_THRESHOLDS, Matches, from_coco_eval

STATISTICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    ``metrics`` has mmdet's names (``coco/bbox_mAP`` ...) in [0, 1], unrounded, -1 where no object qualifies;
    ``matches`` holds one ``Matches`` for 'bbox' and, where masks are predicted, one for 'segm'.
    """

    metrics: dict[str, float]
    matches: dict[str, Matches]
    images: int
    detector: nn.Module = field(repr=False, compare=False)


@METRICS.register_module()
class MatchingCocoMetric(CocoMetric):
    """CocoMetric that does not round, keeps per-image matches, and scores the images it has seen, no others.

    mmdet's own takes every image of the annotation file, so a subset would count the rest as missed.
    """

    matches: dict[str, Matches]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluate boxes and, where predicted, masks; see ``Evaluation.metrics``."""
        predictions = [prediction for _, prediction in results]
        self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta['classes'])
        kinds = ('bbox', 'segm') if any('masks' in prediction for prediction in predictions) else ('bbox',)
        metrics: dict[str, float] = {}
        self.matches = {}
        for kind in kinds:
            evaluation = self._run_coco(predictions, kind)
            self.matches[kind] = from_coco_eval(evaluation)
            metrics.update({f'{kind}_{name}': float(evaluation.stats[i]) for i, name in enumerate(STATISTICS)})
        return metrics

    def evaluate(self, size: int) -> dict:
        """As in the base class; the matches reach every rank too."""
        self.matches = {}
        metrics = super().evaluate(size)
        shared = [self.matches]
        broadcast_object_list(shared)
        self.matches = shared[0]
        return metrics

    def _run_coco(self, predictions: Sequence[dict], kind: str) -> COCOeval:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._coco_api, self._found(predictions, kind), kind)
            evaluation.params.catIds = self.cat_ids
            evaluation.params.imgIds = sorted({prediction['img_id'] for prediction in predictions})
            evaluation.params.iouThrs = IOU_THRESHOLDS
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    def _found(self, predictions: Sequence[dict], kind: str) -> COCO:
        """Detections as a COCO result set; pycocotools' loadRes cannot take an empty one."""
        entries = [entry for prediction in predictions for entry in self._entries(prediction, kind)]
        if entries:
            return self._coco_api.loadRes(entries)
        nothing = COCO()
        nothing.dataset = {**self._coco_api.dataset, 'annotations': []}
        nothing.createIndex()
        return nothing

    def _entries(self, prediction: dict, kind: str) -> list[dict[str, Any]]:
        scores = prediction['scores']
        if kind == 'segm':
            scores = prediction.get('mask_scores', scores)
        entries = []
        for index, label in enumerate(prediction['labels']):
            entry = {
                'image_id': prediction['img_id'],
                'category_id': self.cat_ids[label],
                'score': float(scores[index]),
            }
            # with a box beside the mask, pycocotools would take the object's size from the box
            if kind == 'segm':
                entry['segmentation'] = prediction['masks'][index]
            else:
                entry['bbox'] = self.xyxy2xywh(prediction['bboxes'][index])
            entries.append(entry)
        return entries


def evaluate(
    detector: nn.Module | Config | str | Path,
    checkpoint: str | Path | None = None,
    *,
    dataloader: DataLoader | Mapping[str, Any] | None = None,
    dataset: Mapping[str, Any] | None = None,
    limit: int | None = None,
    work_dir: str | Path | None = None,
) -> Evaluation:
    """Run a detector over a test set and score it.

    Args:
        detector: a config (or its file) or a loaded detector.
        checkpoint: weights for a config; without it ``load_from`` of the config is used.
        dataloader: replaces ``test_dataloader`` of a config; needed with a loaded detector (build it once and pass it
            again in a loop).
        dataset: edits to ``test_dataloader.dataset`` such as ``dict(ann_file=..., data_prefix=dict(img=...))``.
        limit: only the first so many images.
        work_dir: where the Runner of a config writes its log; a temporary folder by default.
    """
    if isinstance(detector, nn.Module):
        if checkpoint is not None:
            raise ValueError('checkpoint is for a config; load it into the detector before calling evaluate')
        if dataloader is None:
            raise ValueError('dataloader is missing; give a DataLoader or a test_dataloader config with the detector')
        return _evaluate_loaded(detector, build_dataloader(dataloader, dataset, limit))
    if isinstance(dataloader, DataLoader):
        raise ValueError('dataloader must be a config when the detector is a config; give test_dataloader as a dict')
    cfg = copy.deepcopy(detector) if isinstance(detector, Config) else Config.fromfile(detector)
    cfg.test_dataloader = edited(dataloader or cfg.get('test_dataloader'), dataset, limit)
    return _evaluate_config(cfg, checkpoint, work_dir)


def edited(
    dataloader: Mapping[str, Any] | None, dataset: Mapping[str, Any] | None = None, limit: int | None = None
) -> dict[str, Any]:
    """A copy of a dataloader config on another set (``dataset``: edits) or on its first ``limit`` images."""
    if not dataloader or 'dataset' not in dataloader:
        raise ValueError('test_dataloader.dataset is missing; give a dataloader config with a dataset')
    if limit is not None and limit < 1:
        raise ValueError(f'limit={limit} leaves no image; give at least 1')
    cfg = Config({'dataloader': copy.deepcopy(dict(dataloader))})
    if dataset:
        cfg.merge_from_dict({'dataloader': {'dataset': dict(dataset)}})
    if limit is not None:
        cfg.dataloader.dataset.indices = limit
    return cfg.dataloader


def build_dataloader(
    dataloader: DataLoader | Mapping[str, Any], dataset: Mapping[str, Any] | None = None, limit: int | None = None
) -> DataLoader:
    """A DataLoader from its config; one that is built already is returned as it is."""
    if isinstance(dataloader, DataLoader):
        if dataset or limit is not None:
            raise ValueError('dataset and limit cannot change a built DataLoader; give its config instead')
        return dataloader
    return Runner.build_dataloader(edited(dataloader, dataset, limit))


def annotation_file(dataset: Any) -> str:
    """The annotation file of a dataset, or of its config; wrappers are looked through."""
    get = dataset.get if isinstance(dataset, Mapping) else lambda name, default=None: getattr(dataset, name, default)
    inner = get('dataset')
    if inner is not None:
        return annotation_file(inner)
    file = get('ann_file')
    if not file:
        raise ValueError('test_dataloader.dataset.ann_file is missing; evaluation needs a COCO annotation file')
    # a built dataset has joined them already
    root = get('data_root') if isinstance(dataset, Mapping) else None
    return str(Path(root or '') / file)


def _evaluate_config(cfg: Config, checkpoint: str | Path | None, work_dir: str | Path | None) -> Evaluation:
    cfg.test_evaluator = {
        'type': MatchingCocoMetric.__name__,
        'ann_file': annotation_file(cfg.test_dataloader['dataset']),
    }
    checkpoint = checkpoint or cfg.get('load_from')
    if not checkpoint:
        raise ValueError('load_from is missing; give a checkpoint to evaluate')
    cfg.load_from, cfg.resume = str(checkpoint), False
    cfg.test_cfg = cfg.get('test_cfg') or {'type': 'TestLoop'}
    # mmengine keeps visualizers by name for the whole process: an older one would go on writing to its own folder
    cfg.visualizer = {**(cfg.get('visualizer') or {'type': 'Visualizer'}), 'name': uuid.uuid4().hex, 'vis_backends': []}
    with tempfile.TemporaryDirectory() as scratch:
        cfg.work_dir = str(work_dir or scratch)
        runner = Runner.from_cfg(cfg)
        metrics = runner.test()
    loop = runner.test_loop
    return Evaluation(metrics, loop.evaluator.metrics[0].matches, len(loop.dataloader.dataset), runner.model)


def _evaluate_loaded(detector: Any, dataloader: DataLoader) -> Evaluation:
    dataset: Any = dataloader.dataset
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on reading: noise in a loop
        metric = MatchingCocoMetric(ann_file=annotation_file(dataset))
    evaluator = Evaluator([metric])
    evaluator.dataset_meta = dataset.metainfo
    training = detector.training
    detector.eval()
    with torch.no_grad():
        for batch in dataloader:
            evaluator.process(detector.test_step(batch), batch)
    if training:
        detector.train()
    metrics = evaluator.evaluate(len(dataset))
    return Evaluation(metrics, metric.matches, len(dataset), detector)
