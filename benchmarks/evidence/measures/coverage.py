"""How much of a picture is object, and how large objects are: from annotation files alone."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

from .. import splits
from ..intervals import interval_of, mean_over_images

if TYPE_CHECKING:
    from pathlib import Path

    from ..worker import Context

SMALL, LARGE = 32**2, 96**2  # COCO's limits in pixels of the mask


def measure(context: Context) -> dict[str, Any]:
    """Object coverage of every split in ``settings['splits']``, in per cent of the picture."""
    found = {}
    for split in context.experiment.settings['splits']:
        splits.require(context.repository, split)
        path = splits.data_root(context.repository) / splits.dataset_edits(split)['ann_file']
        found[split] = describe(path)
    return {'extras': {'splits': found}}


def describe(annotations: Path) -> dict[str, Any]:
    """Statistics of one annotation file."""
    content = json.loads(annotations.read_text())
    objects = defaultdict(list)
    for entry in content['annotations']:
        objects[entry['image_id']].append(entry)
    shares = np.array([100 * covered(objects[image['id']], image) for image in content['images']])
    points, draws = mean_over_images(shares[:, None])
    areas = np.array([entry['area'] for entry in content['annotations']])
    return {
        'images': len(shares),
        'objects_per_image': round(len(areas) / len(shares), 2),
        'coverage': interval_of(points, draws.T, images=len(shares)).as_dict(),
        'coverage_quantiles_5_50_95': np.percentile(shares, [5, 50, 95]).round(1).tolist(),
        'small_medium_large': [
            round(float(share), 3)
            for share in (
                (areas < SMALL).mean(),
                ((areas >= SMALL) & (areas <= LARGE)).mean(),
                (areas > LARGE).mean(),
            )
        ],
    }


def covered(objects: list[dict[str, Any]], image: dict[str, Any]) -> float:
    """Share of the picture under at least one mask."""
    if not objects:
        return 0.0
    union = coco_mask.merge([entry['segmentation'] for entry in objects])
    return float(coco_mask.area(union)) / (image['height'] * image['width'])
