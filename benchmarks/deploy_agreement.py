"""Does the integer backbone detect what the simulated one does? AP of both on the same images.

    python benchmarks/deploy_agreement.py CONFIG CKPT [--images 100] [--engines kernels torch nudged]
                                          [--ratios 0/0 0.5/0] [--json docs/results/deploy_agreement.json]

A checkpoint that is not calibrated yet is calibrated on train images first. ``--ratios`` are pairs low/prune for all
block pairs; those of the config without. Images are the first of the config's validation set.

How far apart roundings alone put two runs is what 'nudged' shows: the simulated model against itself with embedded
patches that are larger by a millionth (images would not do: their codes would be the same).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS
from timing import describe_device

from mixaq_mmdet.deploy.convert import convert_backbone
from mixaq_mmdet.deploy.files import integer_config
from mixaq_mmdet.deploy.tiers import ENGINES
from mixaq_mmdet.engine.atomic_file import write_whole
from mixaq_mmdet.engine.calibrated import calibrated_detector
from mixaq_mmdet.engine.evaluate import evaluate

LIMIT = 0.1  # AP that may lie between the simulated and the integer backbone
NUDGED, NUDGE = 'nudged', 1e-6
Ratios = tuple[float, float] | None


def ratio_pair(text: str) -> tuple[float, float]:
    """'0.5/0.2' as (low, prune)."""
    try:
        low, prune = (float(part) for part in text.split('/'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no pair; write low/prune, as 0.5/0.2') from None
    return low, prune


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--images', type=int, default=100, help='of the validation set')
    parser.add_argument('--engines', nargs='+', choices=(*ENGINES, NUDGED), default=['auto'])
    parser.add_argument('--ratios', nargs='+', type=ratio_pair, default=[None], metavar='LOW/PRUNE')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='as of tools/test.py, for another split')
    parser.add_argument('--json', type=Path)
    return parser.parse_args(argv)


def integer_twin(cfg: Config, detector: Any, engine: str) -> Any:
    """The detector with its backbone converted."""
    model = integer_config(cfg).model
    model.backbone.engine = engine
    twin = MODELS.build(model).eval()
    backbone = {f'backbone.{name}': value for name, value in convert_backbone(detector.backbone).items()}
    heads = {name: value for name, value in detector.state_dict().items() if not name.startswith('backbone.')}
    twin.load_state_dict({**heads, **backbone})
    return twin


def nudged_twin(detector: Any) -> Any:
    """The simulated detector with a residual stream that starts out larger by a millionth."""
    twin = copy.deepcopy(detector)
    norm = twin.backbone.patch_embed.norm
    for parameter in (norm.weight, norm.bias):
        parameter.data *= 1 + NUDGE
    return twin


def box_and_mask_ap(detector: Any, cfg: Config, ratios: Ratios, images: int) -> dict[str, float]:
    """AP in percent."""
    if ratios is not None:
        detector.backbone.set_ratios(*ratios)
    metrics = evaluate(detector, dataloader=cfg.val_dataloader, limit=images).metrics
    return {name: 100 * metrics[f'coco/{name}_mAP'] for name in ('bbox', 'segm') if f'coco/{name}_mAP' in metrics}


def compare(cfg: Config, checkpoint: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each engine and pair of ratios."""
    simulated = calibrated_detector(cfg, checkpoint)
    twins = [
        nudged_twin(simulated) if engine == NUDGED else integer_twin(cfg, simulated, engine)
        for engine in options.engines
    ]
    rows = []
    for ratios in options.ratios:
        expected = box_and_mask_ap(simulated, cfg, ratios, options.images)
        for engine, twin in zip(options.engines, twins, strict=True):
            found = box_and_mask_ap(twin, cfg, ratios, options.images)
            largest = max(abs(found[name] - expected[name]) for name in expected)
            runs_as = 'simulated, stream nudged' if engine == NUDGED else twin.backbone.plan.line
            row = {'runs as': runs_as, 'ratios': ratios, 'simulated': expected, 'twin': found}
            rows.append({**row, 'largest difference': largest, 'within': largest <= LIMIT})
            print(describe(rows[-1]), flush=True)
    return rows


def describe(row: dict[str, Any]) -> str:
    """One line."""
    pairs = ', '.join(f'{name} {row["simulated"][name]:.2f} -> {row["twin"][name]:.2f}' for name in row['simulated'])
    ratios = "the config's ratios" if row['ratios'] is None else 'low {} prune {}'.format(*row['ratios'])
    twin = NUDGED if row['runs as'].startswith('simulated') else 'integer'
    return f'{ratios}: AP simulated -> {twin}: {pairs} ({"within" if row["within"] else "NOT within"} {LIMIT})'


def main(argv: list[str] | None = None) -> None:
    """Compare, print, write; the status is 1 if a difference is above the limit."""
    options = parse_args(argv)
    cfg = Config.fromfile(options.config)
    cfg.merge_from_dict(options.cfg_options or {})
    with torch.no_grad():
        rows = compare(cfg, options.checkpoint, options)
    if options.json:
        about = {name: getattr(options, name) for name in ('config', 'checkpoint', 'images', 'cfg_options')}
        write_whole(options.json, json.dumps({**about, **describe_device(), 'rows': rows}, indent=1) + '\n')
    if not all(row['within'] for row in rows if not row['runs as'].startswith('simulated')):
        sys.exit(1)


if __name__ == '__main__':
    main()
