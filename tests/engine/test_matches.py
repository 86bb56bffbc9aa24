"""AP from stored matches against pycocotools on the same detections."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mixaq_mmdet.engine.matches import average_precision, from_coco_eval, load_matches, mean_ap, pool, save_matches

SIZE = 100


def random_set(seed: int, images: int = 12, categories: int = 3, crowds: bool = False, ties: bool = False):
    """Ground truth and imperfect detections: boxes moved, missed, doubled and invented."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(1, images + 1):
        for category in range(1, categories + 1):
            for _ in range(rng.integers(0, 4)):
                box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)]
                crowd = int(crowds and rng.random() < 0.2)
                truth.append({'image_id': image, 'category_id': category, 'bbox': box, 'iscrowd': crowd})
                for _ in range(rng.integers(0, 3)):
                    moved = (np.array(box) + rng.normal(0, 2, 4)).tolist()
                    found.append({'image_id': image, 'category_id': category, 'bbox': moved})
            if rng.random() < 0.3:
                found.append({'image_id': image, 'category_id': category, 'bbox': [*rng.uniform(0, 60, 2), 20.0, 20.0]})
    for entry in found:
        entry['score'] = float(np.float32(rng.integers(1, 5) / 5 if ties else rng.random()))
    for number, entry in enumerate(truth, 1):
        entry.update(id=number, area=entry['bbox'][2] * entry['bbox'][3])
    ids = range(1, images + 1)
    return {
        'images': [{'id': image, 'width': SIZE, 'height': SIZE} for image in ids],
        'categories': [{'id': category, 'name': f'c{category}'} for category in range(1, categories + 1)],
        'annotations': truth,
    }, found


def coco_evaluation(truth: dict, found: list[dict]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth)
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(copy.deepcopy(found)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def repeated(truth: dict, found: list[dict], weights: np.ndarray) -> tuple[dict, list[dict]]:
    """The data set in which image i occurs ``weights[i]`` times under new ids, as a bootstrap would draw it."""
    images, annotations, detections = [], [], []
    for image, times in zip(truth['images'], weights, strict=True):
        for _ in range(times):
            new = len(images) + 1
            images.append({**image, 'id': new})
            mine = [a for a in truth['annotations'] if a['image_id'] == image['id']]
            annotations += [{**a, 'image_id': new} for a in mine]
            detections += [{**d, 'image_id': new} for d in found if d['image_id'] == image['id']]
    annotations = [{**a, 'id': number} for number, a in enumerate(annotations, 1)]
    return {**truth, 'images': images, 'annotations': annotations}, detections


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(('crowds', 'ties'), [(False, False), (True, False), (False, True)])
def test_equals_pycocotools(seed: int, crowds: bool, ties: bool) -> None:
    evaluation = coco_evaluation(*random_set(seed, crowds=crowds, ties=ties))
    matches = from_coco_eval(evaluation)
    assert mean_ap(matches)[0] == pytest.approx(100 * evaluation.stats[0], abs=1e-10)
    assert mean_ap(matches, threshold=0.5)[0] == pytest.approx(100 * evaluation.stats[1], abs=1e-10)
    assert mean_ap(matches, threshold=0.75)[0] == pytest.approx(100 * evaluation.stats[2], abs=1e-10)
    by_category = evaluation.eval['precision'][:, :, :, 0, -1].mean(axis=1).T
    np.testing.assert_allclose(average_precision(matches)[0], by_category, atol=1e-12)


def test_resamples_equal_pycocotools_on_repeated_images() -> None:
    truth, found = random_set(7)
    matches = from_coco_eval(coco_evaluation(truth, found))
    weights = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, size=6)
    expected = [100 * coco_evaluation(*repeated(truth, found, row)).stats[0] for row in weights]
    np.testing.assert_allclose(mean_ap(matches, weights), expected, atol=1e-9)


def test_category_missing_from_a_resample_does_not_count() -> None:
    truth, found = random_set(3)
    only = {a['image_id'] for a in truth['annotations'] if a['category_id'] == 1}
    matches = from_coco_eval(coco_evaluation(truth, found))
    without = np.array([[int(image['id'] not in only) for image in truth['images']]])
    assert without.any()
    assert np.isnan(average_precision(matches, without)[0, 0]).all()
    expected = coco_evaluation(*repeated(truth, found, without[0])).stats[0]
    assert mean_ap(matches, without)[0] == pytest.approx(100 * expected, abs=1e-9)


def test_hand_built_precision_recall_curve() -> None:
    """Two objects; hit, miss, hit: precision 1 up to recall .5 (51 levels), then 2/3 (50 levels)."""
    boxes = [[0, 0, 20, 20], [50, 50, 20, 20]]
    truth = {
        'images': [{'id': 1, 'width': SIZE, 'height': SIZE}],
        'categories': [{'id': 1, 'name': 'a'}],
        'annotations': [
            {'id': i + 1, 'image_id': 1, 'category_id': 1, 'bbox': box, 'area': 400, 'iscrowd': 0}
            for i, box in enumerate(boxes)
        ],
    }
    placed = [boxes[0], [0, 50, 20, 20], boxes[1]]
    found = [{'image_id': 1, 'category_id': 1, 'bbox': b, 'score': s} for b, s in zip(placed, (0.9, 0.8, 0.7))]  # noqa: B905
    assert mean_ap(from_coco_eval(coco_evaluation(truth, found)))[0] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_pool_equals_pycocotools_on_the_union() -> None:
    first, second = random_set(1), random_set(2, images=9)
    shifted_truth = {
        'images': [{**image, 'id': image['id'] + 12} for image in second[0]['images']],
        'categories': first[0]['categories'],
        'annotations': [
            {**a, 'image_id': a['image_id'] + 12, 'id': a['id'] + len(first[0]['annotations'])}
            for a in second[0]['annotations']
        ],
    }
    shifted = [{**d, 'image_id': d['image_id'] + 12} for d in second[1]]
    union = {
        'images': first[0]['images'] + shifted_truth['images'],
        'categories': first[0]['categories'],
        'annotations': first[0]['annotations'] + shifted_truth['annotations'],
    }
    parts = [from_coco_eval(coco_evaluation(*first), 'a/'), from_coco_eval(coco_evaluation(*second), 'b/')]
    expected = coco_evaluation(union, first[1] + shifted).stats[0]
    assert mean_ap(pool(parts))[0] == pytest.approx(100 * expected, abs=1e-9)
    with pytest.raises(ValueError, match='share image ids'):
        pool([parts[0], parts[0]])


def test_subset_equals_weights_of_zero() -> None:
    matches = from_coco_eval(coco_evaluation(*random_set(5)))
    keep = np.arange(12) % 3 > 0
    assert mean_ap(matches.subset(keep))[0] == pytest.approx(mean_ap(matches, keep[None].astype(int))[0])


def test_file_round_trip_is_exact_and_stores_equal_arrays_once(tmp_path) -> None:
    matches = from_coco_eval(coco_evaluation(*random_set(6)))
    save_matches(tmp_path / 'one.npz', {'bbox': matches})
    save_matches(tmp_path / 'two.npz', {'bbox': matches, 'segm': matches})
    read = load_matches(tmp_path / 'two.npz')
    assert mean_ap(read['segm'])[0] == mean_ap(matches)[0] == mean_ap(read['bbox'])[0]
    assert (tmp_path / 'two.npz').stat().st_size < 1.1 * (tmp_path / 'one.npz').stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ['one.npz', 'two.npz'], 'no temporary file is left'


def test_wrong_number_of_images_is_named() -> None:
    matches = from_coco_eval(coco_evaluation(*random_set(6)))
    with pytest.raises(ValueError, match='12 images'):
        mean_ap(matches, np.ones((2, 5), int))
