"""How well the latency table predicts whole backbones at ratios that it has not seen.

    python benchmarks/latency_table.py [--quick] [--subjects NAME ...] [--vectors 20] [--rounds 7] [--clock wall]
                                       [--json docs/results/latency_table.json]

For each subject the table of ``tools/analyze.py latency`` is measured, and in the same rounds whole forwards at random
ratio vectors, low and pruned windows mixed; an error is predicted over measured time, less one. Random weights,
calibrated on noise. On a busy machine use ``--clock cpu`` with one thread. The last line is the verdict: the largest
error against the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from mmengine.config import Config
from timing import describe_device

from mixaq_mmdet.analysis.commands.latency import converted, predictions, random_vectors, ready
from mixaq_mmdet.analysis.latency import measure
from mixaq_mmdet.analysis.model_config import build_backbone
from mixaq_mmdet.analysis.timing import CLOCKS
from mixaq_mmdet.reporting.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
MINI = 'configs/mini/mask-rcnn_swin-mini_mixaq-ptq-w4a8.py'
SWIN_T = 'configs/mixaq/mask-rcnn_swin-t_mixaq-ptq-w4a8.py'
# config, input size, whether it is converted to integers
SUBJECTS = {
    'mini, W4A8 with A4 low': (MINI, (256, 256), False),
    'mini, integer': (MINI, (256, 256), True),
    'Swin-T, W4A8 with A4 low': (SWIN_T, (800, 1216), False),
    'Swin-T, integer': (SWIN_T, (800, 1216), True),
    'Swin-T, float': ('configs/mixaq/mask-rcnn_swin-t_float.py', (800, 1216), False),
}
QUICK = 'mini, W4A8 with A4 low'
LIMIT = 0.10


def build(config: str, integer: bool) -> Any:
    """The backbone of a config, calibrated on noise, and converted if asked for."""
    cfg = Config.fromfile(ROOT / config)
    backbone = build_backbone(cfg)
    ready(backbone)
    return converted(cfg, backbone) if integer else backbone


def accuracy(backbone: Any, shape: tuple[int, int], args: argparse.Namespace) -> dict[str, Any]:
    """Errors of the predictions for one backbone at one input size (height, width)."""
    vectors = random_vectors(backbone.num_pairs, args.vectors, args.seed)
    table = measure(backbone, shape, args.rounds, args.clock, args.seed, vectors=vectors)
    rows = predictions(table)
    errors = [abs(row['error']) for row in rows]
    return {
        'path': table.path,
        'shape': list(shape),
        'largest error': max(errors),
        'median error': statistics.median(errors),
        'spread of the pieces': statistics.median(entry.spread for entry in table.entries),
        'vectors': rows,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 1 if the limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='the mini backbone only, 4 vectors, 3 rounds')
    parser.add_argument('--subjects', nargs='+', choices=list(SUBJECTS), default=list(SUBJECTS), metavar='NAME')
    parser.add_argument('--vectors', type=int, default=20, help='random ratio vectors for each subject')
    parser.add_argument('--rounds', type=int, default=7, help='interleaved repeats; medians count')
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help='cpu: processor time, for a busy machine')
    parser.add_argument('--seed', type=int, default=0, help='of images and vectors')
    parser.add_argument('--json', type=Path, help='file that the figures are written to')
    args = parser.parse_args(argv)
    if args.vectors < 1:
        parser.error(f'--vectors {args.vectors} compares nothing; give at least 1')
    if args.quick:
        args.subjects, args.vectors, args.rounds = [QUICK], 4, 3
    found = {}
    for name in args.subjects:
        config, shape, integer = SUBJECTS[name]
        found[name] = accuracy(build(config, integer), shape, args)
        print(
            f'{name}, {shape[0]} x {shape[1]}: largest error {100 * found[name]["largest error"]:.1f} %, '
            f'median {100 * found[name]["median error"]:.1f} % over {args.vectors} vectors',
            flush=True,
        )
    largest = max(row['largest error'] for row in found.values())
    content = {
        'limit': LIMIT,
        'clock': args.clock,
        'rounds': args.rounds,
        'seed': args.seed,
        'subjects': found,
        **describe_device(),
    }
    if args.json:
        write_whole(args.json, json.dumps(content, indent=1) + '\n')
    print(f'{"holds" if largest <= LIMIT else "MISSED"}: largest error {largest:.3f} (limit {LIMIT})')
    return int(largest > LIMIT)


if __name__ == '__main__':
    raise SystemExit(main())
