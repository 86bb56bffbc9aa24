"""Splits of mini-COCO: where each lies, and which bytes an evaluation has seen."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT_VARIABLE, LARGE_VARIABLE = 'MINICOCO_ROOT', 'MINICOCO_16K_ROOT'
ROOTS = {ROOT_VARIABLE: 'data/minicoco/', LARGE_VARIABLE: 'data/minicoco-16k/'}
LARGE = 'train_16k'  # the training split of the second set, the only split that is read there
SEALED = ('test', 'test_b')  # refused without --open-test
KINDS = ('fog', 'noise', 'blur', 'contrast')


def data_root(repository: Path, variable: str = ROOT_VARIABLE) -> Path:
    """Where mini-COCO, or its set of 16 000 training images, lies on this machine."""
    return repository / os.environ.get(variable, ROOTS[variable])


def dataset_edits(split: str | None) -> dict[str, Any]:
    """Edits that point a mini-COCO dataset config at a split; a corrupted twin is called ``ood/<kind>-<severity>``."""
    if split is None:
        return {}
    folder, name = (f'{split}/', 'val') if split.startswith('ood/') else ('', 'train' if split == LARGE else split)
    return {'ann_file': f'{folder}annotations/instances_{name}.json', 'data_prefix': {'img': f'{folder}{name}/'}}


def split_of(dataset: Mapping[str, Any], repository: Path) -> str | None:
    """The split that a dataset config of mini-COCO reads; None for any other dataset."""
    found = re.fullmatch(r'annotations/instances_(\w+)\.json', dataset.get('ann_file') or '')
    if found is None:
        return None
    large = repository / (dataset.get('data_root') or '') == data_root(repository, LARGE_VARIABLE)
    return LARGE if large and found[1] == 'train' else found[1]


def image_prefix(split: str | None) -> str:
    """Namespace of the image ids: twins share val's, because their images are paired with val's."""
    if split is None:
        return ''
    return 'val/' if split.startswith('ood/') else f'{split}/'


def digest(repository: Path, split: str | None) -> str | None:
    """One hash over the manifest's lines of a split; None where there is no manifest."""
    manifest = data_root(repository, _variable(split)) / 'MANIFEST.sha256'
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
    variable = _variable(split)
    root = data_root(repository, variable)
    path = root / dataset_edits(split)['ann_file']
    if not path.is_file():
        counts = ' --train 16000 --splits train' if split == LARGE else ''
        raise ValueError(
            f'{variable}: split {split!r} is missing ({path}); make the set with '
            f'`python tools/make_minicoco.py --out {root}{counts}` or point {variable} at it'
        )


def _variable(split: str | None) -> str:
    return LARGE_VARIABLE if split == LARGE else ROOT_VARIABLE
