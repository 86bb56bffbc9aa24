"""Measured latency of a config's backbone on this device, and how well the table predicts ratios it has not seen.

What is measured is the simulated float path: fake quantization costs time there and low windows save none, pruned
windows do. With --integer it is the converted backbone (as in the config that tools/deploy.py convert wrote). Either is
calibrated on noise: its speed is that of a trained one. With --detector the parts outside the backbone are measured,
too, and predictions are for the whole detector, from a padded image to detections; every score counts, so that as many
detections come out as max_per_img allows.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import MODELS, DefaultScope

from mixaq_mmdet.analysis.detector_latency import all_scores, sample_of
from mixaq_mmdet.analysis.latency import Entry, LatencyTable, measure
from mixaq_mmdet.analysis.model_config import build_backbone, build_detector, input_shape
from mixaq_mmdet.analysis.study import check_result, facts, spelled_out, write_result
from mixaq_mmdet.analysis.timing import CLOCKS
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.calibration import Calibrator, uncalibrated
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.reporting.environment import device, versions
from mixaq_mmdet.reporting.markdown import markdown_table

COLUMNS = ('stage', 'piece', 'high / low / pruned', 'ms', 'spread')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py latency``."""
    parser.add_argument('config', help='config file with a TwoBranchSwin backbone')
    parser.add_argument('--shape', type=int, nargs=2, metavar=('H', 'W'), help='input size in pixels')
    parser.add_argument('--rounds', type=int, default=7, help='interleaved repeats; medians count (default: 7)')
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help='cpu: processor time, for a busy machine')
    parser.add_argument('--check', type=int, default=4, help='random ratio vectors to compare with predictions')
    parser.add_argument('--integer', action='store_true', help='convert the backbone and measure its integer path')
    parser.add_argument('--detector', action='store_true', help='measure neck, heads, NMS and pasting of masks, too')
    parser.add_argument('--seed', type=int, default=0, help='of the image and the checked vectors')
    parser.add_argument('--out', type=Path, metavar='FILE.json', help='write the table here, and as .md beside')
    command_line.add_config_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Measure, print, and compare with whole forwards."""
    cfg = command_line.load_config(options)
    if options.out:
        check_result(options.out, '--out')
    shape = input_shape(cfg, options.shape)
    detector, backbone = ready_models(cfg, options)
    vectors = random_vectors(backbone.num_pairs, options.check, options.seed)
    table = measure(backbone, shape, options.rounds, options.clock, options.seed, vectors=vectors, detector=detector)
    used = next(backbone.parameters()).device.type
    table.environment = {'versions': versions(), 'device': device(used)}
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    console.print(entries_table(table))
    about = f'{table.scope}, input {shape[0]} x {shape[1]}, {table.path} path, {table.clock} clock'
    console.print(f'{about}, torch {torch.__version__}, {spelled_out(device(used))}', soft_wrap=True)
    checks = predictions(table)
    for line in map(check_line, checks):
        console.print(line, soft_wrap=True)
    if options.out:
        shown = markdown_table(COLUMNS, [entry_cells(entry) for entry in table.entries])
        lines = '\n'.join(f'- {check_line(row)}' for row in checks)
        text = f'# Latency of the {table.scope}\n\n{about}.\n\n{shown}\n\n{lines}'.rstrip()
        write_result(options.out, {**table.as_dict(), 'checks': checks, **facts(options, used=used)}, text)


def ready_models(cfg: Any, options: argparse.Namespace) -> tuple[Any, Any]:
    """The detector, if it is wanted, and the backbone, calibrated and converted if it is wanted."""
    detector: Any = build_detector(cfg) if options.detector else None
    backbone: Any = build_backbone(cfg) if detector is None else detector.backbone
    if not isinstance(backbone, TwoBranchSwin):
        raise ValueError("model.backbone is stock; latency by tier needs type='TwoBranchSwin'")
    if detector is None:
        ready(backbone)
        return None, converted(cfg, backbone) if options.integer else backbone
    ready(backbone, detector)
    detector = converted_detector(cfg, detector) if options.integer else detector
    return detector, detector.backbone


def ready(backbone: TwoBranchSwin, detector: Any = None) -> None:
    """Calibrate on noise if nothing else has calibrated the backbone, and the detector if one is given."""
    if uncalibrated(backbone if detector is None else detector):
        size = 4 * backbone.stages[0].window_size * backbone.patch_embed.projection.stride[0]
        noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        if detector is None:
            Calibrator(backbone).run([noise])
        else:
            with all_scores(detector):  # a mask head is calibrated on detections
                Calibrator(detector).run([{'inputs': [noise[0]], 'data_samples': [sample_of((size, size))]}])
    backbone.eval()


def converted(cfg: Any, backbone: TwoBranchSwin) -> TwoBranchSwin:
    """The integer twin of a calibrated backbone."""
    from mixaq_mmdet.deploy.convert import convert_backbone
    from mixaq_mmdet.deploy.files import integer_config

    twin = MODELS.build(integer_config(cfg).model.backbone)
    twin.load_state_dict(convert_backbone(backbone))
    return twin


def converted_detector(cfg: Any, detector: Any) -> Any:
    """The integer twin of a calibrated detector, as its file fills it."""
    from mixaq_mmdet.deploy import convert_model
    from mixaq_mmdet.deploy.files import integer_config

    with DefaultScope.overwrite_default_scope('mmdet'):
        twin = MODELS.build(integer_config(cfg).model)
    twin.load_state_dict(convert_model(detector).state_dict())
    return twin.eval()


def random_vectors(pairs: int, count: int, seed: int) -> list[tuple[list[float], list[float]]]:
    """(low, prune) ratios up to 0.4 each, which no table is fitted to."""
    generator = np.random.default_rng(seed)
    return [tuple((generator.integers(0, 5, pairs) / 10).tolist() for _ in range(2)) for _ in range(count)]


def predictions(table: LatencyTable) -> list[dict[str, Any]]:
    """Predicted and measured latency of every whole forward that the table holds."""
    rows = []
    for whole in table.wholes:
        predicted = table.predict(whole.low, whole.prune)
        error = predicted / whole.ms - 1
        rows.append({**asdict(whole), 'predicted_ms': predicted, 'error': error})
    return rows


def check_line(row: dict[str, Any]) -> str:
    """A row of ``predictions`` in words."""
    return (
        f'unseen ratios low {row["low"]} prune {row["prune"]}: predicted {row["predicted_ms"]:.1f} ms, '
        f'measured {row["ms"]:.1f} ms ({100 * row["error"]:+.1f} %)'
    )


def entry_cells(entry: Entry) -> list[str]:
    """The texts of a measured piece, one for each of ``COLUMNS``."""
    block = entry.piece in ('regular', 'shifted')
    return [
        '' if entry.stage < 0 else str(entry.stage + 1),
        f'{entry.piece} block' if block else entry.piece,
        ' / '.join(str(number) for number in entry.counts) if block else '',
        f'{entry.ms:.2f}',
        f'{100 * entry.spread:.0f} %',
    ]


def entries_table(table: LatencyTable) -> Any:
    """A rich table of what was measured."""
    from rich.table import Table

    shown = Table()
    for name in COLUMNS:
        shown.add_column(name, justify='left' if name == 'piece' else 'right')
    for entry in table.entries:
        shown.add_row(*entry_cells(entry))
    return shown
