"""What COCO's evaluation knows about each image, kept small: AP of any resample without running the model again.

COCO's AP depends on the detections only through their order by score and through which of them hit an object at each
IoU threshold. Hits are decided inside one image, so an AP over any multiset of the same images (a bootstrap resample,
a subset, two sets pooled) follows from the stored hits by counting.

Words: N images, K categories, D detections, T = 10 IoU thresholds, R resamples. Area "all", 100 detections per image
and category, as in COCO's first number.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixaq_mmdet.reporting.files import whole_file

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
_TINY = np.spacing(1)  # COCO adds it to every denominator; kept so that results agree to the last bit
_CHUNK = 200_000  # weights gathered at once: stays in the processor's cache


@dataclass(frozen=True, eq=False)
class Matches:
    """Hits of one detector on one image set, for boxes or for masks.

    Detections are ordered by category, then image, then falling score: the order in which COCO breaks ties.
    """

    image_ids: np.ndarray  # (N,) strings
    categories: np.ndarray  # (K,) strings
    objects: np.ndarray  # (K, N) annotated objects that count (crowds do not)
    counts: np.ndarray  # (K, N) detections
    scores: np.ndarray  # (D,) float32
    hits: np.ndarray  # (D,) uint16, bit t set: true positive at threshold t
    ignored: np.ndarray  # (D,) uint16, bit t set: matched to a crowd, neither true nor false

    def __post_init__(self) -> None:
        shape = (len(self.categories), len(self.image_ids))
        if self.objects.shape != shape or self.counts.shape != shape:
            raise ValueError(f'objects and counts must have shape (categories, images) = {shape}')
        if not len(self.scores) == len(self.hits) == len(self.ignored) == int(self.counts.sum()):
            raise ValueError('scores, hits and ignored must have one entry for each detection in counts')

    @cached_property
    def ranked(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each category: image index, hits and ignored of its detections, best score first."""
        ends = np.cumsum(self.counts.sum(axis=1))
        table = []
        for category, end in enumerate(ends):
            part = slice(end - int(self.counts[category].sum()), end)
            order = np.argsort(-self.scores[part], kind='stable')
            images = np.repeat(np.arange(len(self.image_ids)), self.counts[category])
            table.append((images[order], self.hits[part][order], self.ignored[part][order]))
        return table

    def subset(self, keep: np.ndarray) -> Matches:
        """The same detector on the images where ``keep`` (N,) is true."""
        keep = np.asarray(keep, dtype=bool)
        chosen = np.repeat(np.broadcast_to(keep, self.counts.shape).ravel(), self.counts.ravel())
        return Matches(
            self.image_ids[keep],
            self.categories,
            self.objects[:, keep],
            self.counts[:, keep],
            self.scores[chosen],
            self.hits[chosen],
            self.ignored[chosen],
        )


def from_coco_eval(evaluation: Any, prefix: str = '') -> Matches:
    """Read a ``pycocotools`` COCOeval after ``evaluate()``; ``prefix`` keeps image ids of several sets apart."""
    parameters = evaluation.params
    image_ids, category_ids = list(parameters.imgIds), list(parameters.catIds)
    objects = np.zeros((len(category_ids), len(image_ids)), np.int16)
    counts = np.zeros_like(objects)
    scores: list[Any] = []
    hits: list[Any] = []
    ignored: list[Any] = []
    bits = 1 << np.arange(len(IOU_THRESHOLDS), dtype=np.uint16)[:, None]
    for row in range(len(category_ids)):
        first = row * len(parameters.areaRng) * len(image_ids)  # area range 0 is "all"
        for column, record in enumerate(evaluation.evalImgs[first : first + len(image_ids)]):
            if record is None:
                continue
            objects[row, column] = np.count_nonzero(np.asarray(record['gtIgnore']) == 0)
            found = record['dtScores'][:MAX_DETECTIONS]
            counts[row, column] = len(found)
            matched = record['dtMatches'][:, :MAX_DETECTIONS] > 0
            passed = record['dtIgnore'][:, :MAX_DETECTIONS].astype(bool)
            scores.append(np.asarray(found, np.float32))
            hits.append(((matched & ~passed) * bits).sum(axis=0, dtype=np.uint16))
            ignored.append((passed * bits).sum(axis=0, dtype=np.uint16))
    names = {c['id']: c['name'] for c in evaluation.cocoGt.dataset['categories']}
    return Matches(
        image_ids=np.array([f'{prefix}{i}' for i in image_ids]),
        categories=np.array([names[i] for i in category_ids]),
        objects=objects,
        counts=counts,
        scores=np.concatenate(scores) if scores else np.zeros(0, np.float32),
        hits=np.concatenate(hits) if hits else np.zeros(0, np.uint16),
        ignored=np.concatenate(ignored) if ignored else np.zeros(0, np.uint16),
    )


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """AP per resample, category and threshold; not a number where a resample holds no object of the category.

    Args:
        matches: hits of one detector.
        weights: (R, N) how often each image occurs in each resample; None: every image once.

    Returns:
        (R, K, T) AP in [0, 1], interpolated at COCO's 101 recall levels.
    """
    if weights is None:
        weights = np.ones((1, len(matches.image_ids)), np.int32)
    weights = np.asarray(weights, np.int32)
    if weights.ndim != 2 or weights.shape[1] != len(matches.image_ids):
        raise ValueError(f'weights has shape {weights.shape}; give (resamples, {len(matches.image_ids)} images)')
    largest = max((len(images) for images, _, _ in matches.ranked), default=0)
    rows = max(1, _CHUNK // max(1, largest))
    return np.concatenate([_average_precision(matches, weights[i : i + rows]) for i in range(0, len(weights), rows)])


def _average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    result = np.full((len(weights), len(matches.categories), len(IOU_THRESHOLDS)), np.nan)
    for category, (images, hits, ignored) in enumerate(matches.ranked):
        present = weights @ matches.objects[category].astype(np.int32)
        valid = present > 0
        gathered = weights[:, images]
        seen = None if ignored.any() else np.cumsum(gathered, axis=1)
        for threshold in range(len(IOU_THRESHOLDS)):
            bit = np.uint16(1 << threshold)
            counted = seen if seen is not None else np.cumsum(gathered * ((ignored & bit) == 0), axis=1)
            true = np.flatnonzero(hits & bit)
            found = np.cumsum(gathered[:, true], axis=1)
            ap = _interpolated(found, counted[:, true], present)
            result[valid, category, threshold] = ap[valid]
    return result


def _interpolated(found: np.ndarray, counted: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean of the precision envelope over the recall levels.

    Only true positives are looked at: between two of them precision falls, so the envelope never starts elsewhere.

    Args:
        found: (R, P) true positives up to and including the p-th one.
        counted: (R, P) detections up to and including it.
        present: (R,) objects.
    """
    if found.shape[1] == 0:
        return np.zeros(len(found))
    precision = found / (counted + _TINY)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = found / np.maximum(present, 1)[:, None]
    reached = np.searchsorted(RECALL_LEVELS, recall, side='right')
    return (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1) / len(RECALL_LEVELS)


def mean_ap(matches: Matches, weights: np.ndarray | None = None, threshold: float | None = None) -> np.ndarray:
    """COCO's AP in points (0-100), one for each resample: mean over categories that occur and over thresholds.

    Args:
        matches: hits of one detector.
        weights: (R, N) as in ``average_precision``; None: one resample holding every image once.
        threshold: one IoU threshold (0.5 gives AP50); None: mean over all ten.
    """
    ap = average_precision(matches, weights)
    if threshold is not None:
        ap = ap[:, :, np.isclose(IOU_THRESHOLDS, threshold)]
        if ap.shape[2] != 1:
            raise ValueError(f'threshold={threshold} is none of {IOU_THRESHOLDS.round(2).tolist()}')
    valid = ~np.isnan(ap)
    return 100 * np.where(valid, ap, 0).sum(axis=(1, 2)) / np.maximum(valid.sum(axis=(1, 2)), 1)


def pool(parts: Sequence[Matches]) -> Matches:
    """One set from several: the detector's hits on all images together (image ids must differ)."""
    first = parts[0]
    ids = np.concatenate([part.image_ids for part in parts])
    if any(not np.array_equal(part.categories, first.categories) for part in parts):
        raise ValueError('parts have different categories; pool results of the same data set only')
    if len(np.unique(ids)) != len(ids):
        raise ValueError('parts share image ids; evaluate each set under its own prefix')
    rows = range(len(first.categories))
    bounds = [np.concatenate(([0], np.cumsum(part.counts.sum(axis=1)))) for part in parts]

    def by_category(name: str) -> np.ndarray:
        pieces = [
            getattr(part, name)[bound[row] : bound[row + 1]]
            for row in rows
            for part, bound in zip(parts, bounds, strict=True)
        ]
        return np.concatenate(pieces)

    return Matches(
        image_ids=ids,
        categories=first.categories,
        objects=np.concatenate([part.objects for part in parts], axis=1),
        counts=np.concatenate([part.counts for part in parts], axis=1),
        scores=by_category('scores'),
        hits=by_category('hits'),
        ignored=by_category('ignored'),
    )


def save_matches(path: str | Path, matches: Mapping[str, Matches]) -> None:
    """Write ``{'bbox': ..., 'segm': ...}`` into one compressed file, atomically; equal arrays are stored once.

    Scores are most of it. Their bytes lie plane by plane, the high ones of all scores together, which packs a sixth
    smaller than score by score.
    """
    arrays: dict[str, np.ndarray] = {'kinds': np.array(list(matches))}
    first = next(iter(matches.values()))
    for number, (kind, part) in enumerate(matches.items()):
        for field in fields(Matches):
            array = getattr(part, field.name)
            if number == 0 or not np.array_equal(array, getattr(first, field.name)):
                arrays[f'{kind}/{field.name}'] = _planes(array) if field.name == 'scores' else array
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, 'w', zipfile.ZIP_LZMA) as file:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f'{name}.npy')  # of a fixed date: equal matches are equal files
            entry.compress_type = zipfile.ZIP_LZMA
            with file.open(entry, 'w') as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def load_matches(path: str | Path) -> dict[str, Matches]:
    """Read what ``save_matches`` wrote."""
    with np.load(path, allow_pickle=False) as file:
        kinds = [str(kind) for kind in file['kinds']]
        names = [field.name for field in fields(Matches)]
        stored = set(file.files)
        read = {
            kind: {n: file[f'{kind}/{n}' if f'{kind}/{n}' in stored else f'{kinds[0]}/{n}'] for n in names}
            for kind in kinds
        }
    return {kind: Matches(**{**arrays, 'scores': _scores(arrays['scores'])}) for kind, arrays in read.items()}


def _planes(scores: np.ndarray) -> np.ndarray:
    """(4, D) uint8: the bytes of float32 scores, the lowest of each first."""
    return np.ascontiguousarray(scores.astype('<f4').view(np.uint8).reshape(-1, 4).T)


def _scores(stored: np.ndarray) -> np.ndarray:
    """Inverse of ``_planes``; files of before hold the scores themselves."""
    return np.ascontiguousarray(stored.T).view('<f4')[:, 0].astype(np.float32) if stored.ndim == 2 else stored
