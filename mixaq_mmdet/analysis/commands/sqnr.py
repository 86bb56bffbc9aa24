"""Signal to quantization noise (dB) of windows by stage, by objects and by importance, for one checkpoint or two.

Writes sqnr.json, .md and .png into <work-dir>/sqnr.
"""

from __future__ import annotations

import argparse
from typing import Any

from mixaq_mmdet.analysis.study import evaluation_loader, facts, image_ids, study_folder, write_study
from mixaq_mmdet.analysis.window_sqnr import PLACES, draw_sqnr, sqnr_by_stage
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.argument_checks import type_name
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.reporting.markdown import markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py sqnr``."""
    parser.add_argument('config', help='config of a quantized detector whose test pipeline loads masks')
    parser.add_argument('checkpoint', help='calibrated or trained checkpoint')
    parser.add_argument('--after', metavar='CKPT', help='a second checkpoint of the same config, such as after SAQA')
    parser.add_argument('--images', type=int, default=32, help='how many images (default: 32)')
    command_line.add_config_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure and write."""
    cfg = command_line.load_config(options)
    check_noise(cfg.model.backbone)
    folder = study_folder(cfg, 'sqnr')
    loader = evaluation_loader(cfg, limit=options.images)
    named = {'before' if options.after else 'model': options.checkpoint}
    if options.after:
        named['after'] = options.after
    models = {name: sqnr_by_stage(load_detector(cfg, path), loader) for name, path in named.items()}
    content = {'unit': 'dB', 'checkpoints': named, 'stages': models, **facts(options, image_ids(loader), 'cpu')}
    rows = [
        [name, index + 1, *[stage[place] for place in PLACES]]
        for name, stages in models.items()
        for index, stage in enumerate(stages)
    ]
    table = markdown_table(['model', 'stage', *[f'{place} (dB)' for place in PLACES]], rows)
    text = (
        f'# Window SQNR\n\nMean over the windows of {len(content["image_ids"])} images, every window high.\n\n{table}'
    )
    write_study(folder, 'sqnr', content, text, lambda figure: draw_sqnr(figure, models))


def check_noise(backbone: Any) -> None:
    """A ValueError unless the backbone of a config rounds, and can leave it."""
    if type_name(backbone.type) == 'IntegerSwin':
        raise ValueError(
            "model.backbone.type='IntegerSwin' is converted: it has no run without rounding to compare with; give the "
            'config and checkpoint that it was converted from'
        )
    if not backbone.get('quant'):
        raise ValueError('model.backbone.quant is missing: a float model has no quantization noise')
