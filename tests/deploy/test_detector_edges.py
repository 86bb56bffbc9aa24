"""Converted detectors against simulated ones: nothing found, boxes of a pixel, sizes that differ, a large image."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.structures import InstanceData
from tiny_detectors import CLASSES, batch, calibrated

from mixaq_mmdet.deploy import convert_model
from mixaq_mmdet.deploy.backends import OnednnBackend

BACKEND, REASON = OnednnBackend.load()
TWO_STAGES = ['Mask R-CNN', 'Cascade Mask R-CNN']
SIZES = ((64, 96), (41, 57))
LARGE = (3000, 2000)
PIXELS_APART = 0.02  # share of a mask's pixels near the threshold that the codes of tiny models may move over it
EDGES = torch.tensor(
    [
        [10.0, 20.0, 11.0, 21.0],
        [10.3, 20.3, 10.6, 20.4],
        [10.0, 20.0, 10.0, 20.0],
        [0.0, 0.0, 1.0, 1.0],
        [56.0, 40.0, 57.0, 41.0],
    ]
)


@pytest.fixture(
    scope='module',
    params=['torch', pytest.param('auto', marks=pytest.mark.skipif(BACKEND is None, reason=str(REASON)))],
)
def engine(request) -> str:
    return request.param


@pytest.fixture(scope='module', params=TWO_STAGES)
def pair(request, engine):
    """(simulated detector, its integer twin)."""
    model = calibrated(request.param, 'RepQ W4A8')
    return model, convert_model(model, engine)


@pytest.fixture(scope='module')
def dense_pair(engine):
    model = calibrated('RetinaNet', 'RepQ W4A8')
    return model, convert_model(model, engine)


@torch.no_grad()
def maps_of(model, data: dict[str, Any]) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Maps of the neck, and what the images are, from the simulated detector."""
    data = model.data_preprocessor(copy.deepcopy(data), False)
    return model.extract_feat(data['inputs']), [sample.metainfo for sample in data['data_samples']]


@torch.no_grad()
def detected(model, twin, data: dict[str, Any], monkeypatch) -> list[tuple[InstanceData, InstanceData]]:
    """(found, expected) for each image, from the same maps: another code in noise is another best proposal."""
    maps, _ = maps_of(model, data)
    expected = model.test_step(copy.deepcopy(data))
    monkeypatch.setattr(twin, 'extract_feat', lambda _: maps)
    found = twin.test_step(copy.deepcopy(data))
    return [(a.pred_instances, b.pred_instances) for a, b in zip(found, expected, strict=True)]


def check_same(found: InstanceData, expected: InstanceData) -> None:
    assert set(found.keys()) == set(expected.keys())
    for name in expected.keys():  # noqa: SIM118 (no mapping)
        assert found[name].shape == expected[name].shape, name
        assert found[name].dtype == expected[name].dtype, name
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0.02)
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=0, atol=0.5)


def test_no_proposals(pair, monkeypatch):
    model, twin = pair
    for detector in pair:
        monkeypatch.setitem(detector.rpn_head.test_cfg, 'min_bbox_size', 10**6)
    for found, expected in detected(model, twin, batch(0, SIZES), monkeypatch):
        assert len(expected) == 0
        check_same(found, expected)


def test_no_detections(pair, monkeypatch):
    model, twin = pair
    for detector in pair:
        monkeypatch.setitem(detector.roi_head.test_cfg, 'score_thr', 2.0)
    for (found, expected), size in zip(detected(model, twin, batch(0, SIZES), monkeypatch), SIZES, strict=True):
        assert found.masks.shape == (0, *size)
        check_same(found, expected)


def test_no_detections_of_one_stage(dense_pair, monkeypatch):
    for detector in dense_pair:
        monkeypatch.setitem(detector.bbox_head.test_cfg, 'score_thr', 2.0)
    for found, expected in detected(*dense_pair, batch(0, SIZES), monkeypatch):
        assert len(expected) == 0
        check_same(found, expected)


def test_two_images_of_different_size(pair, monkeypatch):
    for (found, expected), size in zip(detected(*pair, batch(3, SIZES), monkeypatch), SIZES, strict=True):
        assert len(expected) > 0
        assert found.masks.shape[1:] == size
        check_same(found, expected)


def test_two_images_of_different_size_and_one_stage(dense_pair, monkeypatch):
    """Scores alone: among those of noise, a code more lets another box come first."""
    for found, expected in detected(*dense_pair, batch(3, SIZES), monkeypatch):
        assert len(found) == len(expected) > 0
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0.02)


@pytest.mark.parametrize('counts', [(5, 5), (5, 0), (0, 5)], ids=str)
@torch.no_grad()
def test_boxes_of_one_pixel_and_images_without_boxes(pair, counts):
    """Boxes and scores of every proposal, without NMS."""
    maps, metas = maps_of(pair[0], batch(4, SIZES))
    found, expected = ([], [])
    for detector, results in zip(pair[::-1], (found, expected), strict=True):
        proposals = [InstanceData(bboxes=EDGES[:count].clone(), scores=torch.ones(count)) for count in counts]
        results += detector.roi_head.predict_bbox(list(maps), metas, proposals, rcnn_test_cfg=None)
    for a, b, count in zip(found, expected, counts, strict=True):
        assert len(b) == count
        check_same(a, b)


@pytest.mark.parametrize('counts', [(5, 5), (5, 0), (0, 0)], ids=str)
@torch.no_grad()
def test_masks_of_one_pixel(pair, counts):
    maps, metas = maps_of(pair[0], batch(4, SIZES))
    masks = []
    for detector in pair:
        boxes = [
            InstanceData(bboxes=EDGES[:count].clone(), labels=torch.arange(count) % CLASSES, scores=torch.ones(count))
            for count in counts
        ]
        masks.append([result.masks for result in detector.roi_head.predict_mask(list(maps), metas, boxes)])
    for expected, found, count, size in zip(*masks, counts, SIZES, strict=True):
        assert found.shape == expected.shape == (count, *size)
        assert found.dtype == expected.dtype
        assert count == 0 or (found != expected).float().mean() < PIXELS_APART


@pytest.mark.parametrize('name', ['Mask R-CNN', 'RetinaNet'])
@torch.no_grad()
def test_a_large_image(name, engine):
    model = calibrated(name, 'RepQ W4A8')
    twin = convert_model(model, engine)
    data = batch(5, (LARGE,))
    maps, _ = maps_of(model, data)
    for found, expected in zip(
        twin.extract_feat(twin.data_preprocessor(copy.deepcopy(data), False)['inputs']), maps, strict=True
    ):
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm()) < 0.04
    result = twin.test_step(data)[0].pred_instances
    assert len(result) == 10
    assert bool(((result.bboxes >= 0) & (result.bboxes <= torch.tensor(LARGE[::-1] * 2))).all())
    assert 'masks' not in result or result.masks.shape == (10, *LARGE)
