"""Does a converted detector detect what the simulated one does? AP of both on the same images.

    python benchmarks/deploy_agreement.py CONFIG CKPT [--images 100] [--engines auto torch nudged float]
                                          [--ratios 0/0 0.5/0] [--json docs/results/deploy_agreement.json]

A checkpoint that is not calibrated yet is calibrated on train images first. ``--ratios`` are pairs low/prune for all
block pairs; those of the config without. Images are the first of the config's validation set. Of a QuantDetector neck
and heads are converted as well.

How far apart roundings alone put two runs is what 'nudged' shows: the simulated model against itself with embedded
patches that are larger by a millionth (images would not do: their codes would be the same). 'float' is the same model
with its quantizers off.
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
from timing import describe_device

from mixaq_mmdet.deploy import convert_model
from mixaq_mmdet.deploy.backends import engines
from mixaq_mmdet.engine.calibration.detectors import calibrated_detector
from mixaq_mmdet.engine.evaluate import evaluate
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.reporting.files import write_whole

LIMIT, WHOLE_LIMIT = 0.1, 0.3  # AP that may lie between simulated and integers: of the backbone, of a whole detector
NUDGED, NUDGE = 'nudged', 1e-6
FLOAT = 'float'
CONTROLS = {NUDGED: 'simulated, stream nudged', FLOAT: 'float'}
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
    parser.add_argument('--engines', nargs='+', choices=(*engines(), *CONTROLS), default=['auto'])
    parser.add_argument('--ratios', nargs='+', type=ratio_pair, default=[None], metavar='LOW/PRUNE')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='as of tools/test.py, for another split')
    parser.add_argument('--json', type=Path)
    return parser.parse_args(argv)


def twin_of(detector: Any, engine: str) -> Any:
    """What is compared with the simulated detector: itself on integers, or one of ``CONTROLS``."""
    if engine == NUDGED:
        return nudged_twin(detector)
    return float_twin(detector) if engine == FLOAT else convert_model(detector, engine)


def float_twin(detector: Any) -> Any:
    """The simulated detector with its quantizers off."""
    twin = copy.deepcopy(detector)
    for module in twin.modules():
        if isinstance(module, Quantizer):
            module.mode = 'float'
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
    twins = [twin_of(simulated, engine) for engine in options.engines]
    limit = WHOLE_LIMIT if cfg.model.type == 'QuantDetector' else LIMIT
    rows = []
    for ratios in options.ratios:
        expected = box_and_mask_ap(simulated, cfg, ratios, options.images)
        for engine, twin in zip(options.engines, twins, strict=True):
            found = box_and_mask_ap(twin, cfg, ratios, options.images)
            largest = max(abs(found[name] - expected[name]) for name in expected)
            runs_as = CONTROLS.get(engine) or twin.backbone.plan.line
            row = {'engine': engine, 'runs as': runs_as, 'ratios': ratios, 'simulated': expected, 'twin': found}
            rows.append({**row, 'largest difference': largest, 'limit': limit, 'within': largest <= limit})
            print(describe(rows[-1]), flush=True)
    return rows


def describe(row: dict[str, Any]) -> str:
    """One line."""
    pairs = ', '.join(f'{name} {row["simulated"][name]:.2f} -> {row["twin"][name]:.2f}' for name in row['simulated'])
    ratios = "the config's ratios" if row['ratios'] is None else 'low {} prune {}'.format(*row['ratios'])
    twin = row['engine'] if row['engine'] in CONTROLS else 'integer'
    return f'{ratios}: AP simulated -> {twin}: {pairs} ({"within" if row["within"] else "NOT within"} {row["limit"]})'


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
    if not all(row['within'] for row in rows if row['engine'] not in CONTROLS):
        sys.exit(1)


if __name__ == '__main__':
    main()
