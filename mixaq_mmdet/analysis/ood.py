"""How much of its accuracy a model keeps on other sets: COCO-style folders, rankings, low bits beside pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.utils.data import DataLoader

from mixaq_mmdet.engine.damaged_images import naming_images
from mixaq_mmdet.engine.evaluate import evaluate
from mixaq_mmdet.engine.progress import counted_images
from mixaq_mmdet.models.ratios import Ratios, checked_ratios
from mixaq_mmdet.reporting.figures import COLOURS
from mixaq_mmdet.windows.importance import Importance, Random

from .inspection import two_branch


def turned_around(importance: Importance) -> Importance:
    """The same importance that ranks in the other direction."""
    turned = copy.copy(importance)
    turned.reverse = not importance.reverse
    return turned


RANKINGS: dict[str, Callable[[Importance], Importance]] = {
    'normal': lambda own: own,
    'reversed': turned_around,
    'random': lambda own: Random(seed=0),
}
"""How windows are ranked, from the importance that the model has."""


class Arm(NamedTuple):
    """Ratios under a name."""

    name: str
    low: Ratios
    prune: Ratios


def coco_folder(folder: Path) -> dict[str, Any]:
    """Dataset edits for a COCO-style folder: annotations/instances_<split>.json beside <split>/ (COCO-O too)."""
    files = sorted((folder / 'annotations').glob('instances_*.json'))
    for file in files:
        images = folder / file.stem.removeprefix('instances_')
        if images.is_dir():
            return {
                'data_root': f'{folder}/',
                'ann_file': f'annotations/{file.name}',
                'data_prefix': {'img': f'{images.name}/'},
            }
    raise ValueError(
        f'--sets {folder} is not a COCO-style folder; it needs annotations/instances_<split>.json and <split>/ '
        f'(found {[file.name for file in files] or "no annotation file"}); for other layouts give --ann-file and '
        '--image-prefix'
    )


def robustness(
    detector: nn.Module, loaders: Mapping[str, DataLoader], arms: Sequence[Arm], rankings: Sequence[str]
) -> list[dict[str, Any]]:
    """Box AP of every arm under every ranking of ``RANKINGS`` on every set; the first loader is the clean set."""
    unknown = [name for name in rankings if name not in RANKINGS]
    if unknown:
        raise ValueError(f'--rankings {unknown} are unknown; use some of {list(RANKINGS)}')
    backbone = two_branch(detector)
    importance = backbone.importance
    plan = []
    for arm in arms:
        ranked = any(ratio for ratios in checked_ratios(arm.low, arm.prune, backbone.num_pairs) for ratio in ratios)
        plan += [(arm, ranking, ranking if ranked else '-') for ranking in (rankings if ranked else rankings[:1])]
    images = len(plan) * sum(len(loader.sampler) for loader in loaders.values())  # type: ignore[arg-type, misc]
    rows = []
    try:
        with counted_images('robustness', backbone, images):
            for arm, ranking, shown in plan:
                backbone.importance = RANKINGS[ranking](importance)
                with backbone.at_ratios(arm.low, arm.prune):
                    ap = {name: _average_precision(detector, loader) for name, loader in loaders.items()}
                rows.append({'arm': arm.name, 'ranking': shown, 'ap': ap, **degradation(ap)})
    finally:
        backbone.importance = importance
    return rows


def _average_precision(detector: nn.Module, loader: DataLoader) -> float:
    with naming_images(loader.dataset):
        return 100 * evaluate(detector, dataloader=loader).metrics['coco/bbox_mAP']


def degradation(ap: Mapping[str, float]) -> dict[str, Any]:
    """Relative loss in percent of the first set's AP on each other set, and their mean; None where the first is 0."""
    clean, *others = ap
    losses = {name: 100 * (ap[clean] - ap[name]) / ap[clean] if ap[clean] > 0 else None for name in others}
    known = [loss for loss in losses.values() if loss is not None]
    return {'relative_loss': losses, 'mean_relative_loss': sum(known) / len(known) if known else None}


def draw_robustness(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Bars of the relative loss on each set, an arm under a ranking each."""
    sets = list(rows[0]['relative_loss'])
    figure.set_size_inches(max(6, 1.1 * len(sets) + 2.5), 4)
    axis = figure.subplots()
    width = 0.85 / len(rows)
    for number, row in enumerate(rows):
        at = np.arange(len(sets)) + (number - (len(rows) - 1) / 2) * width
        values = [row['relative_loss'][name] or 0 for name in sets]
        label = row['arm'] if row['ranking'] == '-' else f'{row["arm"]}, {row["ranking"]}'
        hatch = '//' if row['ranking'] == 'reversed' else '..' if row['ranking'] == 'random' else None
        axis.bar(at, values, width * 0.92, color=COLOURS[number % 6], hatch=hatch, edgecolor='white', label=label)
    axis.set_xticks(range(len(sets)), sets, fontsize=8, rotation=25 if len(sets) > 5 else 0)
    axis.set_ylabel('relative loss of box AP (% of clean)')
    axis.grid(axis='y', alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc='upper center', bbox_to_anchor=(0.5, 1.2), ncols=3)
    figure.tight_layout()
