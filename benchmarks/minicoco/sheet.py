"""A contact sheet: pictures side by side, as they are and with their annotations."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .files import read_picture, write_picture
from .stats import LOOKED_AT, annotations_by_image

PICTURES = 4
GAP = 4
OUTLINE = (255, 40, 40)
LABEL = (255, 255, 60)


def annotated(pixels: np.ndarray, entries: list[dict], names: dict[int, str]) -> np.ndarray:
    """A copy with mask outlines and category names."""
    picture = np.ascontiguousarray(pixels)
    for entry in entries:
        contours, _ = cv2.findContours(coco_mask.decode(entry['segmentation']), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, contours, -1, OUTLINE, 1)
    for entry in entries:
        left, top, width, height = entry['bbox']
        place = (int(max(left + width / 2 - 32, 0)), int(top + height / 2 + 3))
        cv2.putText(picture, names[entry['category_id']], place, cv2.FONT_HERSHEY_SIMPLEX, 0.3, LABEL, 1, cv2.LINE_AA)
    return picture


def row_of(pictures: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.pad(picture, ((GAP, 0), (GAP, 0), (0, 0))) for picture in pictures], axis=1)


def contact_sheet(folder: Path) -> np.ndarray:
    """Rows: val, val with annotations, each twin of val, then val_wide and test_b where they exist."""
    rows = []
    for name in ('val', 'val_wide', 'test_b'):
        path = folder / 'annotations' / f'instances_{name}.json'
        if not path.is_file() or name not in LOOKED_AT:
            continue
        document = json.loads(path.read_text())
        names = {category['id']: category['name'] for category in document['categories']}
        found = annotations_by_image(document)
        images = document['images'][:PICTURES]
        clean = [read_picture(folder / name / image['file_name']) for image in images]
        rows += [
            row_of(clean),
            row_of([annotated(p, found[i['id']], names) for p, i in zip(clean, images, strict=True)]),
        ]
        if name == 'val':
            twins = sorted(path for path in (folder / 'ood').glob('*') if path.is_dir())
            rows += [row_of([read_picture(twin / 'val' / i['file_name']) for i in images]) for twin in twins]
    if not rows:
        raise ValueError(f'--out {folder} holds neither val, val_wide nor test_b: make one of them first')
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def save_contact_sheet(folder: Path, target: Path) -> None:
    if target.suffix not in ('.png', '.jpg'):
        raise ValueError(f'--sheet {target}: name a .png or .jpg file')
    target.parent.mkdir(parents=True, exist_ok=True)
    write_picture(target, contact_sheet(folder))
