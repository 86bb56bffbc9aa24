"""Splits of mini-COCO: where each lies, and which bytes an evaluation has seen."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

ROOT_VARIABLE = 'MINICOCO_ROOT'
DEFAULT_ROOT = 'data/minicoco/'
SEALED = ('test', 'test_b')  # refused without --open-test
KINDS = ('fog', 'noise', 'blur', 'contrast')


def data_root(repository: Path) -> Path:
    """Where mini-COCO lies on this machine."""
    return repository / os.environ.get(ROOT_VARIABLE, DEFAULT_ROOT)


def dataset_edits(split: str | None) -> dict[str, Any]:
    """Edits that point a mini-COCO dataset config at a split; a corrupted twin is called ``ood/<kind>-<severity>``."""
    if split is None:
        return {}
    folder, name = (f'{split}/', 'val') if split.startswith('ood/') else ('', split)
    return {'ann_file': f'{folder}annotations/instances_{name}.json', 'data_prefix': {'img': f'{folder}{name}/'}}


def split_of(annotations: str) -> str | None:
    """The split an annotation file of mini-COCO belongs to; None for any other file."""
    found = re.fullmatch(r'annotations/instances_(\w+)\.json', annotations)
    return found[1] if found else None


def image_prefix(split: str | None) -> str:
    """Namespace of the image ids: twins share val's, because their images are paired with val's."""
    if split is None:
        return ''
    return 'val/' if split.startswith('ood/') else f'{split}/'


def digest(repository: Path, split: str | None) -> str | None:
    """One hash over the manifest's lines of a split; None where there is no manifest."""
    manifest = data_root(repository) / 'MANIFEST.sha256'
    if split is None or not manifest.is_file():
        return None
    edits = dataset_edits(split)
    starts = (edits['ann_file'], edits['data_prefix']['img'])
    lines = [line for line in manifest.read_text().splitlines() if line[66:].startswith(starts)]
    return hashlib.sha256('\n'.join(sorted(lines)).encode()).hexdigest()[:16] if lines else None


def require(repository: Path, split: str | None) -> None:
    """Raise a ValueError that tells how to make a split that is not there."""
    if split is None:
        return
    path = data_root(repository) / dataset_edits(split)['ann_file']
    if not path.is_file():
        raise ValueError(
            f'{ROOT_VARIABLE}: split {split!r} is missing ({path}); make the set with '
            f'`python tools/make_minicoco.py --out {data_root(repository)}` or point {ROOT_VARIABLE} at it'
        )
