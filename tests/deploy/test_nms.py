"""NMS of the portable kernels keeps what mmcv's and mmdet's keep, in their order."""

from __future__ import annotations

import pytest
import torch
from mmcv.ops import batched_nms as mmcv_batched_nms
from mmdet.models.layers import multiclass_nms as mmdet_multiclass_nms
from torch import Tensor

from mixaq_mmdet.deploy.kernels.portable import load_portable
from mixaq_mmdet.deploy.parts import nms
from mixaq_mmdet.deploy.parts.nms import batched_nms, multiclass_nms

KERNELS, REASON = load_portable()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f'no portable kernels here: {REASON}')


class Maker:
    """Random boxes of one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def boxes(self, count: int, span: float = 200.0, low: float = 0.0) -> Tensor:
        corners = low + self.rand(count, 2) * span
        return torch.cat([corners, corners + 5 + 60 * self.rand(count, 2)], 1)

    def scores(self, count: int, levels: int | None = None) -> Tensor:
        """With ``levels``, many are equal."""
        scores = self.rand(count)
        return scores if levels is None else (scores * levels).floor() / levels

    def labels(self, count: int, classes: int) -> Tensor:
        return torch.randint(classes, (count,), generator=self.generator)


@pytest.fixture
def no_way_back(monkeypatch):
    """The originals must not be what answers."""

    def fail(*args, **kwargs):
        raise AssertionError('left to the original')

    monkeypatch.setattr(nms, 'mmcv_batched_nms', fail)
    monkeypatch.setattr(nms, 'mmdet_multiclass_nms', fail)


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs)
    for mine, stock in zip(ours, theirs, strict=True):
        assert mine.dtype == stock.dtype
        assert torch.equal(mine, stock)


def mmcv_by_index(boxes: Tensor, scores: Tensor, labels: Tensor, settings: dict) -> tuple[Tensor, Tensor]:
    """mmcv's answer if equal scores came by their index: each box gets a score of its own that keeps this order."""
    order = torch.sort(scores, descending=True, stable=True).indices
    ranks = torch.empty_like(scores)
    ranks[order] = torch.arange(len(scores), 0, -1.0)
    dets, keep = mmcv_batched_nms(boxes, ranks, labels, settings)
    return torch.cat([dets[:, :4], scores[keep, None]], 1), keep


@needs_kernels
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('iou_threshold', [0.0, 0.3, 0.7])
@pytest.mark.parametrize('classes', [1, 5, 80])
@pytest.mark.parametrize('levels', [None, 20], ids=['scores', 'equal scores'])
def test_kept_boxes_are_mmcvs(seed, iou_threshold, classes, levels, no_way_back):
    make = Maker(seed)
    boxes, scores, labels = make.boxes(600), make.scores(600, levels), make.labels(600, classes)
    settings = dict(type='nms', iou_threshold=iou_threshold)
    reference = mmcv_batched_nms if levels is None else mmcv_by_index
    same(batched_nms(boxes, scores, labels, settings), reference(boxes, scores, labels, settings))


@needs_kernels
@pytest.mark.parametrize(
    'settings',
    [
        dict(score_threshold=0.4),
        dict(max_num=7),
        dict(class_agnostic=True),
        dict(split_thr=100),
        dict(split_thr=100, class_agnostic=True, max_num=50),
        dict(split_thr=100, score_threshold=0.4, max_num=50),
    ],
    ids=str,
)
def test_settings_of_mmcv(settings, no_way_back):
    make = Maker()
    boxes, scores, labels = make.boxes(400), make.scores(400), make.labels(400, 6)
    settings = dict(iou_threshold=0.5, **settings)
    same(batched_nms(boxes, scores, labels, settings), mmcv_batched_nms(boxes, scores, labels, settings))


@needs_kernels
def test_classes_meet_where_coordinates_are_negative(no_way_back):
    """Offsets do not part boxes that begin left of 0: mmcv suppresses across classes there."""
    make = Maker()
    boxes, scores, labels = make.boxes(400, 100.0, low=-90.0), make.scores(400), make.labels(400, 4)
    settings = dict(iou_threshold=0.1)
    expected = mmcv_batched_nms(boxes, scores, labels, settings)
    same(batched_nms(boxes, scores, labels, settings), expected)
    of_class = ((boxes[labels == n], scores[labels == n], labels[labels == n]) for n in range(4))
    apart = sum(len(mmcv_batched_nms(*one, settings)[1]) for one in of_class)
    assert len(expected[1]) < apart, 'the case has to be one where classes meet'


@needs_kernels
def test_overlaps_are_rounded_where_mmcv_rounds(no_way_back):
    """Boxes on a grid of thousands of classes: offsets cost bits, and many overlaps lie at the threshold."""
    make = Maker()
    boxes = (make.boxes(800, 40.0) / 4).round() * 4 + 0.1
    scores, labels = make.scores(800), make.labels(800, 3) * 1000
    for iou_threshold in (1 / 3, 0.5):
        settings = dict(iou_threshold=iou_threshold)
        same(batched_nms(boxes, scores, labels, settings), mmcv_batched_nms(boxes, scores, labels, settings))


@needs_kernels
@pytest.mark.parametrize('limit', [1, 30, 10_000])
def test_a_limit_cuts_the_tail(limit, no_way_back):
    make = Maker()
    boxes, scores, labels = make.boxes(5000, 2000.0), make.scores(5000), make.labels(5000, 5)
    settings = dict(iou_threshold=0.7)
    dets, keep = mmcv_by_index(boxes, scores, labels, settings)
    same(batched_nms(boxes, scores, labels, settings, limit=limit), (dets[:limit], keep[:limit]))


@needs_kernels
@pytest.mark.parametrize('score_thr', [0.0, 0.05, 0.9, 2.0])
@pytest.mark.parametrize('max_num', [-1, 100])
@pytest.mark.parametrize('shared_boxes', [False, True])
def test_detections_are_mmdets(score_thr, max_num, shared_boxes, no_way_back):
    make, classes = Maker(), 12
    boxes = make.boxes(150 if shared_boxes else 150 * classes).view(150, -1)
    scores = torch.softmax(4 * torch.randn(150, classes + 1, generator=make.generator), 1)
    settings = dict(type='nms', iou_threshold=0.5)
    arguments = (boxes, scores, score_thr, settings, max_num)
    same(multiclass_nms(*arguments, return_inds=True), mmdet_multiclass_nms(*arguments, return_inds=True))
    same(multiclass_nms(*arguments), mmdet_multiclass_nms(*arguments))


@needs_kernels
def test_more_candidates_than_mmcv_takes_at_once(no_way_back):
    make, classes = Maker(), 40
    boxes, scores = make.boxes(300 * classes).view(300, -1), torch.softmax(make.rand(300, classes + 1), 1)
    arguments = (boxes, scores, 0.0, dict(type='nms', iou_threshold=0.5), 100)
    same(multiclass_nms(*arguments, return_inds=True), mmdet_multiclass_nms(*arguments, return_inds=True))


@needs_kernels
def test_no_boxes():
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    dets, keep = batched_nms(*empty, dict(iou_threshold=0.5), limit=10)
    assert dets.shape == (0, 5)
    assert keep.shape == (0,)
    dets, labels = multiclass_nms(torch.zeros(0, 12), torch.zeros(0, 4), 0.05, dict(iou_threshold=0.5), 100)
    assert dets.shape == (0, 5)
    assert labels.shape == (0,)


@needs_kernels
def test_boxes_without_an_area(no_way_back):
    boxes = torch.tensor([[1.0, 1.0, 1.0, 1.0]] * 3 + [[2.0, 2.0, 3.0, 2.0]] * 2 + [[5.0, 5.0, 4.0, 4.0]])
    scores, labels = torch.linspace(1, 0.1, 6), torch.zeros(6, dtype=torch.int64)
    for iou_threshold in (0.0, 0.5):
        settings = dict(iou_threshold=iou_threshold)
        same(batched_nms(boxes, scores, labels, settings), mmcv_batched_nms(boxes, scores, labels, settings))


@pytest.mark.parametrize(
    'settings',
    [None, dict(type='soft_nms', iou_threshold=0.5), dict(iou_threshold=0.5, offset=1), dict(iou_threshold=-0.5)],
    ids=str,
)
def test_the_rest_is_left_to_mmcv(settings):
    make = Maker()
    boxes, scores, labels = make.boxes(50), make.scores(50), make.labels(50, 3)
    ours = batched_nms(boxes, scores, labels, settings, limit=20)
    dets, keep = mmcv_batched_nms(boxes, scores, labels, settings)
    same(ours, (dets[:20], keep[:20]))


def test_numbers_that_are_not_finite_are_left_to_mmcv():
    make = Maker()
    boxes, scores, labels = make.boxes(50), make.scores(50), make.labels(50, 3)
    scores[7], boxes[9, 2] = float('nan'), float('inf')
    settings = dict(iou_threshold=0.5)
    ours, theirs = batched_nms(boxes, scores, labels, settings), mmcv_batched_nms(boxes, scores, labels, settings)
    assert torch.equal(ours[1], theirs[1])


def test_without_kernels_they_are_the_originals(monkeypatch):
    monkeypatch.setattr(nms, 'load_portable', lambda: (None, 'as if there were no compiler'))
    make = Maker()
    boxes, scores, labels = make.boxes(50), make.scores(50), make.labels(50, 3)
    settings = dict(iou_threshold=0.5)
    same(batched_nms(boxes, scores, labels, settings), mmcv_batched_nms(boxes, scores, labels, settings))
