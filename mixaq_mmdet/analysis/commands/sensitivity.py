"""What it costs to run one block pair's windows low, or to prune them, alone; --per-layer: one layer alone quantized.

Writes sensitivity.json, .md and .png into <work-dir>/sensitivity.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixaq_mmdet.analysis.inspection import two_branch
from mixaq_mmdet.analysis.pair_sensitivity import SCORES, draw_sensitivity, pair_sensitivity
from mixaq_mmdet.analysis.study import evaluation_loader, facts, image_ids, study_folder, write_study
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.models.backbone_cost import layer_bits, swin_spec
from mixaq_mmdet.reporting.markdown import markdown_table
from mixaq_mmdet.windows.cost import backbone_layers

from . import per_layer_sensitivity


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py sensitivity``."""
    parser.add_argument('config', help='config of a quantized detector (float with --per-layer)')
    parser.add_argument('checkpoint', help='its calibrated or trained checkpoint (float with --per-layer)')
    parser.add_argument('--images', type=int, default=8, help='how many images (default: 8)')
    parser.add_argument('--seed', type=int, default=0, help='which images (with --per-layer)')
    pairs = parser.add_argument_group('per pair')
    pairs.add_argument('--ratios', type=float, nargs='+', default=[0.2, 0.5, 0.8], help='default: 0.2 0.5 0.8')
    pairs.add_argument('--score', choices=sorted(SCORES), default='error', help='of features, or loss of box AP')
    pairs.add_argument(
        '--also', nargs=2, action='append', default=[], metavar=('CONFIG', 'CKPT'), help='a model of other low bits'
    )
    layers = parser.add_argument_group('per layer')
    layers.add_argument('--per-layer', action='store_true', help='layers of a float model instead of pairs')
    per_layer_sensitivity.add_arguments(parser)
    command_line.add_config_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure and write."""
    if options.per_layer:
        per_layer_sensitivity.run(options)
        return
    for ratio in options.ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f'--ratios {ratio} must lie in (0, 1]')
    cfg = command_line.load_config(options)
    folder = study_folder(cfg, 'sensitivity')
    loader = evaluation_loader(cfg, limit=options.images)
    arms: dict[str, Any] = {}
    for config, checkpoint in [(options.config, options.checkpoint), *options.also]:
        own = cfg if config == options.config else command_line.load_config(_with(options, config))
        detector = load_detector(own, checkpoint)
        label = low_bits(two_branch(detector))
        label += f' ({Path(config).stem})' if label in arms else ''
        found = pair_sensitivity(detector, loader, options.ratios, options.score, pruned=not arms)
        arms.update({label if tier == 'low' else tier: rows for tier, rows in found.items()})
    unit = SCORES[options.score].unit
    content = {'unit': unit, 'ratios': options.ratios, 'arms': arms, **facts(options, image_ids(loader), 'cpu')}
    rows = [
        [name, pair + 1, *[f'{value:.3g}' for value in row]]
        for name, found in arms.items()
        for pair, row in enumerate(found)
    ]
    table = markdown_table(['windows run', 'pair', *[f'ratio {ratio:g}' for ratio in options.ratios]], rows)
    text = f'# Sensitivity of block pairs\n\n{unit}, one pair alone, {len(content["image_ids"])} images.\n\n{table}'
    write_study(
        folder,
        'sensitivity',
        content,
        text,
        lambda figure: draw_sensitivity(figure, arms, options.ratios, unit),
    )


def low_bits(backbone: Any) -> str:
    """Activation bits of low windows in words, overrides included: '4 bits', or '2 to 4 bits'; 32 where float."""
    layers = [layer for layer in backbone_layers(swin_spec(backbone), (32, 32)) if layer.compressible]
    settings = [layer_bits(backbone, layer) for layer in layers]
    found = {bits for setting in settings for bits in (setting.low, setting.second_low) if bits is not None}
    return f'{min(found)} bits' if len(found) == 1 else f'{min(found)} to {max(found)} bits'


def _with(options: argparse.Namespace, config: str) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), 'config': config})
