"""The fronts of latency searches, measured: AP that the searches found, against times taken in the same rounds.

    python benchmarks/latency_front.py CONFIG CKPT bf16=SEARCH.json int8=SEARCH.json [--points 6] [--rounds 21]
                                       [--threads 2] [--json docs/results/latency_front.json]

CONFIG and CKPT are a converted model's, each ``SEARCH.json`` is what ``tools/search.py --objectives map,latency`` wrote
for it at a setting of ``model.backbone.high``. What a latency table predicts belongs to the minutes in which the table
was measured, so two searches cannot be compared by it: whole forwards of some points of each front are timed in rounds
of changing order, and the median of per-round ratios to every window at int8 counts. A point is on the joint front if
no other is as fast and as good.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from timing import alternate, describe_device, ratios

from mixaq_mmdet.analysis.model_config import usual_shape
from mixaq_mmdet.deploy.plan import HIGH_TIERS
from mixaq_mmdet.engine.calibration.detectors import calibrated_detector
from mixaq_mmdet.reporting.files import write_whole

Point = dict[str, Any]
WHOLE = 'every window at int8'


def tier_and_file(text: str) -> tuple[str, Path]:
    """'bf16=FILE' as both."""
    tier, _, path = text.partition('=')
    if tier not in HIGH_TIERS or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f'{text!r}: write TIER=FILE, a tier of {HIGH_TIERS} and an existing file')
    return tier, Path(path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('searches', nargs='+', type=tier_and_file, metavar='TIER=SEARCH.json')
    parser.add_argument('--points', type=int, default=6, help='of each front, at least 2: evenly by rank')
    parser.add_argument('--rounds', type=int, default=21)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--json', type=Path)
    return parser.parse_args(argv)


def spread(front: Sequence[Point], points: int) -> list[Point]:
    """At most so many points of a front, its ends among them, slowest first."""
    ranked = sorted(front, key=lambda point: -point['latency'])
    if len(ranked) <= points:
        return ranked
    return [ranked[round(place * (len(ranked) - 1) / (points - 1))] for place in range(points)]


def forward_at(backbone: Any, image: torch.Tensor, low: Sequence[float], prune: Sequence[float]) -> Callable[[], Any]:
    """A forward at these ratios."""

    def work() -> Any:
        with backbone.at_ratios(low, prune):
            return backbone(image)

    return work


def tiers_of(high: str, point: Point) -> list[str]:
    """What the windows of a point run as."""
    pairs = list(zip(point['low_ratios'], point['prune_ratios'], strict=True))
    found = {f'{high} high': any(low + prune < 1 for low, prune in pairs)}
    found |= {'int8 low': any(low for low, _ in pairs), 'skipped': any(prune for _, prune in pairs)}
    return [name for name, present in found.items() if present]


def mark_front(points: list[Point]) -> None:
    """Set ``on_front`` of every point."""
    for point in points:
        point['on_front'] = not any(
            other['time'] <= point['time'] and other['map'] >= point['map'] and other is not point for other in points
        )


def measure(
    backbones: dict[str, Any], fronts: dict[str, list[Point]], shape: tuple[int, int], rounds: int
) -> list[Point]:
    """The points with ``time``, relative to every window at int8, slowest first."""
    image = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    pairs = [0.0] * len(next(iter(fronts.values()))[0]['low_ratios'])
    works = {WHOLE: forward_at(backbones['int8'], image, pairs, pairs)}
    points = {}
    for high, front in fronts.items():
        for number, point in enumerate(front):
            name = f'{high} {number}'
            points[name] = {'high': high, **{key: point[key] for key in ('low_ratios', 'prune_ratios', 'map')}}
            points[name]['tiers'] = tiers_of(high, point)
            works[name] = forward_at(backbones[high], image, point['low_ratios'], point['prune_ratios'])
    found = ratios(alternate(works, rounds), WHOLE)
    for name, point in points.items():
        point |= {'time': found[name]['median'], 'least': found[name]['least'], 'most': found[name]['most']}
    mark_front([*points.values()])
    return sorted(points.values(), key=lambda point: -point['time'])


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse_args(argv)
    torch.set_num_threads(options.threads)
    cfg = Config.fromfile(options.config)
    fronts = {high: spread(json.loads(path.read_text())['front'], options.points) for high, path in options.searches}
    backbones = {}
    for high in {'int8', *fronts}:
        cfg.model.backbone.high = high
        backbones[high] = calibrated_detector(cfg, options.checkpoint).backbone
    with torch.no_grad():
        points = measure(backbones, fronts, usual_shape(cfg), options.rounds)
    print(f'time of {WHOLE} = 1')
    for point in points:
        mark = 'front' if point['on_front'] else ''
        print(f'{point["time"]:.2f} {point["map"]:6.2f} AP  {", ".join(point["tiers"]):32} {mark}')
    if options.json:
        about = {'config': options.config, 'rounds': options.rounds, 'shape': usual_shape(cfg), **describe_device()}
        write_whole(options.json, json.dumps({**about, 'points': points}, indent=1) + '\n')


if __name__ == '__main__':
    main()
