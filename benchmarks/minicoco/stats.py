"""Statistics of an existing set, from its annotation files (and a few pictures for the contrast)."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .files import read_picture
from .plan import SPLITS

SMALL_AREA = 32**2
LARGE_AREA = 96**2
COVERAGE_GOAL = (0.2, 0.45)
CONTRAST_PICTURES = 100
CONTRAST_WINDOW = 9
# `test` stays closed until results are final.
LOOKED_AT = tuple(name for name in SPLITS if name != 'test')


def local_contrast(pixels: np.ndarray) -> np.ndarray:
    """(h, w) standard deviation of the brightness in a small window around every pixel."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) / 255.0
    side = (CONTRAST_WINDOW, CONTRAST_WINDOW)
    mean = cv2.blur(grey, side)
    return np.sqrt(np.maximum(cv2.blur(grey * grey, side) - mean * mean, 0.0))


def contrast_ratio(folder: Path, name: str, document: dict) -> float:
    """Local contrast on objects over local contrast elsewhere, averaged over the first pictures."""
    ratios = []
    found = annotations_by_image(document)
    for image in document['images'][:CONTRAST_PICTURES]:
        masks = [entry['segmentation'] for entry in found[image['id']]]
        covered = coco_mask.decode(coco_mask.merge(masks)).astype(bool)
        contrast = local_contrast(read_picture(folder / name / image['file_name']))
        ratios.append(contrast[covered].mean() / max(contrast[~covered].mean(), 1e-6))
    return float(np.median(ratios))


def annotations_by_image(document: dict) -> dict[int, list[dict]]:
    grouped: dict[int, list[dict]] = {image['id']: [] for image in document['images']}
    for entry in document['annotations']:
        grouped[entry['image_id']].append(entry)
    return grouped


def split_statistics(folder: Path, name: str) -> dict:
    """Counts and shares of one split."""
    document = json.loads((folder / 'annotations' / f'instances_{name}.json').read_text())
    found = annotations_by_image(document)
    areas = np.array([entry['area'] for entry in document['annotations']])
    coverage = np.array(
        [
            sum(entry['area'] for entry in found[image['id']]) / (image['height'] * image['width'])
            for image in document['images']
        ]
    )
    per_image = np.array([len(entries) for entries in found.values()])
    low, high = COVERAGE_GOAL
    return {
        'images': len(document['images']),
        'objects': len(areas),
        'objects_per_image': {
            'mean': float(per_image.mean()),
            'min': int(per_image.min()),
            'max': int(per_image.max()),
        },
        'coverage': {'mean': float(coverage.mean()), 'min': float(coverage.min()), 'max': float(coverage.max())},
        'images_with_coverage_in_goal': float(((coverage >= low) & (coverage <= high)).mean()),
        'small': float((areas < SMALL_AREA).mean()),
        'medium': float(((areas >= SMALL_AREA) & (areas < LARGE_AREA)).mean()),
        'large': float((areas >= LARGE_AREA).mean()),
        'smallest_area': int(areas.min()),
        'contrast_ratio': contrast_ratio(folder, name, document),
        'per_category': {
            category['name']: sum(entry['category_id'] == category['id'] for entry in document['annotations'])
            for category in document['categories']
        },
    }


def set_statistics(folder: Path) -> dict[str, dict]:
    """Statistics of every split that exists, `test` excepted."""
    present = [name for name in LOOKED_AT if (folder / 'annotations' / f'instances_{name}.json').is_file()]
    if not present:
        raise ValueError(f'--out {folder} holds no annotations/instances_*.json: make the set first')
    return {name: split_statistics(folder, name) for name in present}


def markdown(statistics: dict[str, dict]) -> str:
    """Two tables: one row per split, one row per category."""
    lines = [
        '| split | images | objects | per image | coverage, mean (range) | small / medium / large | contrast ratio |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, row in statistics.items():
        count, share = row['objects_per_image'], row['coverage']
        lines.append(
            f'| {name} | {row["images"]} | {row["objects"]} | {count["mean"]:.1f} ({count["min"]}-{count["max"]}) '
            f'| {share["mean"]:.1%} ({share["min"]:.1%}-{share["max"]:.1%}) '
            f'| {row["small"]:.0%} / {row["medium"]:.0%} / {row["large"]:.0%} | {row["contrast_ratio"]:.1f} |'
        )
    lines += ['', f'| category | {" | ".join(statistics)} |', f'|---|{"---|" * len(statistics)}']
    for category in next(iter(statistics.values()))['per_category']:
        counts = (str(row['per_category'][category]) for row in statistics.values())
        lines.append(f'| {category} | {" | ".join(counts)} |')
    return '\n'.join(lines)
