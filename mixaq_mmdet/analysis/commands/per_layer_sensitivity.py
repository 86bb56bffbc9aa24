"""``analyze.py sensitivity --per-layer``: what it costs to quantize one layer alone, at several bits.

Writes layer_sensitivity.json, .md and .png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from torch import nn

from mixaq_mmdet.analysis.divergence import Divergence
from mixaq_mmdet.analysis.layer_plot import plot_layers
from mixaq_mmdet.analysis.layer_sensitivity import layer_sensitivity
from mixaq_mmdet.analysis.study import facts, study_folder, write_result
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.calibration.data import calibration_loader, reading_pipeline
from mixaq_mmdet.engine.calibration.detectors import (
    calibrated_detector,
    preprocessed,
)
from mixaq_mmdet.engine.damaged_files import naming_annotations
from mixaq_mmdet.engine.detectors import every_window_high, load_detector
from mixaq_mmdet.engine.evaluate import evaluate
from mixaq_mmdet.quantization import methods_that
from mixaq_mmdet.reporting.markdown import markdown_table

METHOD = methods_that('allocates_bits')[0]
METRICS = ('kl', 'ap')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags beside config, checkpoint, --images and --seed."""
    parser.add_argument('--bits', type=int, nargs='+', default=[2, 3, 4, 6, 8], help='bits to try (default: 2 3 4 6 8)')
    parser.add_argument(
        '--metric',
        choices=METRICS,
        default='kl',
        help='kl: divergence of RPN objectness, RoI class and mask logits from the float model; ap: loss of box AP',
    )
    parser.add_argument('--calibration-images', type=int, default=32, help='images to calibrate each bit width on')


def run(options: argparse.Namespace) -> None:
    """Measure, write, and print the most sensitive layers."""
    cfg = command_line.load_config(options)
    folder = study_folder(cfg, 'sensitivity')
    command_line.check_checkpoint(options.checkpoint, 'checkpoint')
    with naming_annotations(cfg):
        found, ids = measure(every_window_high(cfg), options)
    write(folder, found, ids, options)
    lowest = min(options.bits)
    for name, losses in sorted(found.items(), key=lambda item: -item[1][lowest])[:5]:
        print(f'{losses[lowest]:9.4g}  {name} at {lowest} bits')
    print(f'sensitivity of {len(found)} layers at {sorted(options.bits)} bits, {options.metric}: {folder}')


def measure(cfg: Config, options: argparse.Namespace) -> tuple[dict[str, dict[int, float]], list[Any]]:
    """``result[layer][bits]`` and the ids of the images it was measured on."""
    make = partial(uniform_detector, cfg, options)
    reference = load_detector(cfg, options.checkpoint, get_device(), quant={})
    images, ids = preprocessed(cfg, reference, options.images, options.seed)
    judge: Callable[[nn.Module], float]
    if options.metric == 'kl':
        judge = Divergence(reference, images)
    else:
        judge = _loss_of_ap(cfg, reference, options)
    return layer_sensitivity(make, options.bits, judge), ids


def uniform_detector(cfg: Config, options: argparse.Namespace, bits: int) -> nn.Module:
    """The detector calibrated with ``bits`` everywhere."""
    quant = {'method': METHOD, 'w_bits': bits, 'a_bits': bits}
    return calibrated_detector(cfg, options.checkpoint, quant, options.calibration_images, options.seed)


def _loss_of_ap(cfg: Config, reference: nn.Module, options: argparse.Namespace) -> Callable[[nn.Module], float]:
    loader = calibration_loader(cfg.train_dataloader, reading_pipeline(cfg), options.images, options.seed)

    def average_precision(detector: nn.Module) -> float:
        return 100 * evaluate(detector, dataloader=loader).metrics['coco/bbox_mAP']

    best = average_precision(reference)
    return lambda detector: best - average_precision(detector)


def write(folder: Path, found: dict[str, dict[int, float]], ids: list[Any], options: argparse.Namespace) -> None:
    """JSON, Markdown and plot."""
    content = {
        'metric': options.metric,
        'calibration_images': options.calibration_images,
        'sensitivity': found,
        **facts(options, ids),
    }
    bits = sorted(options.bits)
    rows = [[f'`{name}`', *(f'{losses[b]:.3g}' for b in bits)] for name, losses in found.items()]
    table = markdown_table(['layer', *(f'{b} bits' for b in bits)], rows)
    unit = 'KL divergence of the predictions' if options.metric == 'kl' else 'loss of box AP in points'
    text = f'# Sensitivity per layer\n\n{unit}, one layer alone quantized, {len(ids)} images.\n\n{table}'
    write_result(folder / 'layer_sensitivity.json', content, text)
    panels = {f'{b} bits': {name: losses[b] for name, losses in found.items()} for b in bits}
    logarithmic = tuple(panels) if options.metric == 'kl' else ()
    plot_layers(folder / 'layer_sensitivity.png', panels, logarithmic, f'{unit}, one layer alone quantized')
