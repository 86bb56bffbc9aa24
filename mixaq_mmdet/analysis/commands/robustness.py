"""Relative loss of box AP on other sets, with low windows, with pruning, under normal, reversed or random ranking.

Writes robustness.json, .md and .png into <work-dir>/robustness.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from mixaq_mmdet.analysis.ood import RANKINGS, Arm, coco_folder, draw_robustness, robustness
from mixaq_mmdet.analysis.study import evaluation_loader, facts, image_ids, study_folder, write_study
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.reporting.markdown import markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py robustness``."""
    parser.add_argument('config', help='config; its low_ratios are the arm of low windows')
    parser.add_argument('checkpoint', help='calibrated or trained checkpoint')
    parser.add_argument('--sets', type=Path, nargs='+', default=[], metavar='DIR', help='COCO-style folders')
    parser.add_argument(
        '--ann-file',
        nargs='+',
        default=[],
        metavar='FILE',
        help="annotation files of sets, below the test set's data_root",
    )
    parser.add_argument(
        '--image-prefix', nargs='+', default=[], metavar='DIR', help='their image folders, one for each'
    )
    parser.add_argument('--prune-ratios', type=float, nargs='+', help='also an arm that prunes instead of low bits')
    parser.add_argument('--rankings', nargs='+', default=['normal', 'reversed'], choices=list(RANKINGS))
    parser.add_argument('--images', type=int, help='only the first images of each set')
    command_line.add_config_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Evaluate and write."""
    cfg = command_line.load_config(options)
    folder = study_folder(cfg, 'robustness')
    loaders = {'clean': evaluation_loader(cfg, limit=options.images)}
    sets = named_sets(options)
    loaders |= {named.name: set_loader(cfg, named, options.images) for named in sets}
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
    content = {'sets': {named.name: named.given for named in sets}, 'rows': rows}
    content |= facts(options, image_ids(loaders['clean']), 'cpu')
    content['set_image_ids'] = {named.name: image_ids(loaders[named.name]) for named in sets}
    text = f'# Robustness\n\nBox AP (points), and what is lost of the clean AP, mean over the other sets.\n\n{table}'
    write_study(folder, 'robustness', content, text, lambda figure: draw_robustness(figure, rows))


class NamedSet(NamedTuple):
    """A set of images beside the clean one: how results name it, how the user named it, edits of the test dataset."""

    name: str
    given: str
    edits: dict[str, Any]


def named_sets(options: argparse.Namespace) -> list[NamedSet]:
    """The sets that the command line names; in results a folder's name, or an annotation file's without its ending."""
    if len(options.ann_file) != len(options.image_prefix):
        raise ValueError(
            f'--ann-file names {len(options.ann_file)} sets and --image-prefix {len(options.image_prefix)}; give the '
            'image folder of each annotation file, in the same order'
        )
    sets = [NamedSet(path.name, f'--sets {path}', coco_folder(path)) for path in options.sets]
    for file, folder in zip(options.ann_file, options.image_prefix, strict=True):
        sets.append(NamedSet(Path(file).stem, f'--ann-file {file}', {'ann_file': file, 'data_prefix': {'img': folder}}))
    if not sets:
        raise ValueError('no sets to compare with: give --sets DIR, or --ann-file FILE with --image-prefix DIR')
    count = Counter(['clean', *(named.name for named in sets)])
    if twice := [name for name, times in count.items() if times > 1]:
        raise ValueError(f'sets are told apart by their names, and {twice} stand for two; rename a folder or file')
    return sets


def set_loader(cfg: Any, named: NamedSet, limit: int | None) -> Any:
    """The images of a set, read as the config's test set is; an error says which set."""
    try:
        return evaluation_loader(cfg, named.edits, limit)
    except ValueError as error:
        raise ValueError(f'{named.given}: {error}') from error
