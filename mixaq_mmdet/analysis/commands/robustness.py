"""Relative loss of box AP on other sets, with low windows, with pruning, under normal, reversed or random ranking.

Writes robustness.json, .md and .png into <work-dir>/robustness.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mixaq_mmdet.analysis.inspection import load_detector
from mixaq_mmdet.analysis.ood import RANKINGS, Arm, coco_folder, draw_robustness, robustness
from mixaq_mmdet.analysis.study import evaluation_loader, facts, markdown_table, write_study
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
    edits = {folder.name: coco_folder(folder) for folder in options.sets}
    detector = load_detector(cfg, options.checkpoint)
    loaders = {'clean': evaluation_loader(cfg, limit=options.images)}
    loaders |= {name: evaluation_loader(cfg, edit, options.images) for name, edit in edits.items()}
    arms = [Arm('all high', 0.0, 0.0), Arm('low bits', cfg.model.backbone.get('low_ratios', 0.0), 0.0)]
    if options.prune_ratios:
        prune = options.prune_ratios
        arms.append(Arm('pruning', 0.0, prune[0] if len(prune) == 1 else prune))
    rows = robustness(detector, loaders, arms, options.rankings)
    table = markdown_table(
        ['arm', 'ranking', *[f'AP {name}' for name in loaders], 'mean relative loss (%)'],
        [[row['arm'], row['ranking'], *row['ap'].values(), row['mean_relative_loss']] for row in rows],
    )
    content = {'sets': {name: str(path) for name, path in zip(edits, options.sets, strict=True)}, 'rows': rows}
    content |= facts(options, loaders['clean'])
    text = f'# Robustness\n\nBox AP (points), and what is lost of the clean AP, mean over the other sets.\n\n{table}'
    write_study(
        Path(cfg.work_dir) / 'robustness', 'robustness', content, text, lambda figure: draw_robustness(figure, rows)
    )
