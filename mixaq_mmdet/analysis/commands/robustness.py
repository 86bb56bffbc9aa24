"""Relative loss of box AP on other sets, with low windows, with pruning, under normal, reversed or random ranking.

Writes robustness.json, .md and .png into <work-dir>/robustness.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixaq_mmdet.analysis.inspection import load_detector
from mixaq_mmdet.analysis.ood import RANKINGS, Arm, coco_folder, draw_robustness, robustness
from mixaq_mmdet.analysis.study import evaluation_loader, facts, image_ids, markdown_table, study_folder, write_study
from mixaq_mmdet.engine import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py robustness``."""
    parser.add_argument('config', help='config; its low_ratios are the arm of low windows')
    parser.add_argument('checkpoint', help='calibrated or trained checkpoint')
    parser.add_argument('--sets', type=Path, nargs='+', required=True, metavar='DIR', help='COCO-style folders')
    parser.add_argument('--prune-ratios', type=float, nargs='+', help='also an arm that prunes instead of low bits')
    parser.add_argument('--rankings', nargs='+', default=['normal', 'reversed'], choices=list(RANKINGS))
    parser.add_argument('--images', type=int, help='only the first images of each set')
    command_line.add_config_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Evaluate and write."""
    cfg = command_line.load_config(options)
    folder = study_folder(cfg, 'robustness')
    loaders = {'clean': evaluation_loader(cfg, limit=options.images)}
    loaders |= {path.name: set_loader(cfg, path, options.images) for path in options.sets}
    detector = load_detector(cfg, options.checkpoint)
    arms = [Arm('all high', 0.0, 0.0), Arm('low bits', cfg.model.backbone.get('low_ratios', 0.0), 0.0)]
    if options.prune_ratios:
        prune = options.prune_ratios
        arms.append(Arm('pruning', 0.0, prune[0] if len(prune) == 1 else prune))
    rows = robustness(detector, loaders, arms, options.rankings)
    table = markdown_table(
        ['arm', 'ranking', *[f'AP {name}' for name in loaders], 'mean relative loss (%)'],
        [[row['arm'], row['ranking'], *row['ap'].values(), row['mean_relative_loss']] for row in rows],
    )
    content = {'sets': {path.name: str(path) for path in options.sets}, 'rows': rows}
    content |= facts(options, image_ids(loaders['clean']), 'cpu')
    content['set_image_ids'] = {path.name: image_ids(loaders[path.name]) for path in options.sets}
    text = f'# Robustness\n\nBox AP (points), and what is lost of the clean AP, mean over the other sets.\n\n{table}'
    write_study(folder, 'robustness', content, text, lambda figure: draw_robustness(figure, rows))


def set_loader(cfg: Any, folder: Path, limit: int | None) -> Any:
    """The images of one of ``--sets``, read as the config's test set is; an error names the folder."""
    try:
        return evaluation_loader(cfg, coco_folder(folder), limit)
    except ValueError as error:
        raise ValueError(f'--sets {folder}: {error}') from error
