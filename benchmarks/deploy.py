"""The integer backbone against stock mmdet and the tools that users would otherwise take.

    python benchmarks/deploy.py [--quick] [--json docs/results/speed.json] [--rounds 7] [--threads 2]
                                [--sizes 800x1216 ...] [--batches 1 4] [--architecture tiny] [--weights FILE]

Swin with random weights of a fixed seed unless a file is given. Each rival lives in a process of its own, pinned to
the same cores; rounds interleave, each in an order of its own, and the median of per-round ratios counts. Preparing
(export, calibration, kernel build, compilation) and the first forward are reported apart. C5 error: relative to float,
Frobenius norm.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy_plots import plot_growth
from deploy_rivals import ARCHITECTURES, RIVALS, Source
from timing import describe_device, ratios

from mixaq_mmdet.reporting.files import write_whole

STOCK, OURS, HALF = 'stock mmdet float', 'ours W8A8', 'ours W8A8, half pruned'
VNNI, VNNI_HALF = 'ours VNNI W8A8', 'ours VNNI W8A8, half pruned'
OPENVINO = 'OpenVINO int8'
# with AMX OpenVINO's bf16 is faster than its int8
QUICK = [STOCK, OPENVINO, 'OpenVINO bf16', 'ONNX Runtime dynamic int8', OURS, HALF]
SAME_CLASS = 0.03
SAME_CLASS_OF = {OPENVINO: 0.035}  # the fastest rival shall not leave the comparison by a hair
MAIN_SIZE = '800x1216'
SETTLE = 0.1  # seconds in which the workers of the rival before stop to spin
SIZES = ['224x224', '480x640', MAIN_SIZE, '800x1333']


class Rival:
    """A process that times one forward when asked."""

    def __init__(self, name: str, batch: int, size: str, threads: int, source: Source) -> None:
        self.name = name
        settings = {'name': name, 'batch': batch, 'size': [int(side) for side in size.split('x')]}
        command = [sys.executable, str(Path(__file__).with_name('deploy_rivals.py'))]
        command.append(json.dumps({**settings, 'threads': threads, 'source': source}))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self.name} ended with status {self.process.wait()}; its message is above')
        return json.loads(line)

    def time(self) -> float:
        """Seconds of one forward."""
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def measure(names: list[str], batch: int, size: str, args: argparse.Namespace) -> dict[str, Any]:
    """All rivals at one size, interleaved."""
    rivals, failed = [], {}
    for name in names:
        try:
            rivals.append(Rival(name, batch, size, args.threads, Source(args.architecture, args.weights)))
        except RuntimeError as error:
            if name in (STOCK, OURS) or (args.quick and name == OPENVINO):
                raise
            failed[name] = str(error)
            print(f'{name} did not start and is left out: {error}', flush=True)
    try:
        seconds: dict[str, list[float]] = {rival.name: [] for rival in rivals}
        order, shuffler = list(rivals), random.Random(0)
        for number in range(args.rounds + 1):
            shuffler.shuffle(order)
            for rival in order:
                time.sleep(SETTLE)
                elapsed = rival.time()
                if number:
                    seconds[rival.name].append(elapsed)
    finally:
        for rival in rivals:
            rival.close()
    relative = ratios(seconds, STOCK)
    case = {
        'batch': batch,
        'size': size,
        'seconds': seconds,
        'ratio to stock': relative,
        'facts': {rival.name: rival.facts for rival in rivals},
        'not run': failed,
    }
    for name, facts in case['facts'].items():
        ratio = relative[name]['median'] if name in relative else 1.0
        print(
            f'{size} batch {batch} {name}: {ratio:.3f} of stock ({statistics.median(seconds[name]):.3f} s), C5 error '
            f'{facts["c5_error"]:.4f}, preparing {facts["prepare"]:.1f} s, first forward {facts["first"]:.1f} s',
            flush=True,
        )
    return case


def verdict(case: dict[str, Any]) -> list[str]:
    """The three lines: against stock, against the best rival of the same error class, and the error."""
    seconds, facts = case['seconds'], case['facts']
    rivals = [name for name in seconds if name != STOCK and not name.startswith('ours')]
    others = [name for name in rivals if facts[name]['c5_error'] <= SAME_CLASS_OF.get(name, SAME_CLASS)]
    lines = []
    for whole, half in ((OURS, HALF), (VNNI, VNNI_HALF)):
        if whole in seconds and half in seconds:
            lines.append(f'{half}: {_gain(seconds, whole, half, inverse=True):.2f} of all-high')
    lines.append(f'all-high W8A8: {_gain(seconds, STOCK, OURS):.2f}x {STOCK}')
    if others:
        best = min(others, key=lambda name: statistics.median(seconds[name]))
        lines.append(f'all-high W8A8: {_gain(seconds, best, OURS):.2f}x {best}')
    else:
        lines.append(f'all-high W8A8: no rival within a C5 error of {SAME_CLASS}')
    error = facts[OURS]['c5_error']
    lines.append(f'relative C5 error: {error:.4f} ({"within" if error <= SAME_CLASS else "ABOVE"} {SAME_CLASS})')
    return lines


def _gain(seconds: dict[str, list[float]], slow: str, fast: str, inverse: bool = False) -> float:
    """Median over rounds of slow / fast."""
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return statistics.median(b / a if inverse else a / b for a, b in pairs)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; ``--quick`` sets size, batch and rivals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='800x1216, batch 1: stock, the fastest rivals and ours')
    parser.add_argument('--sizes', nargs='+', type=checked_size, default=SIZES, metavar='HxW')
    parser.add_argument('--batches', nargs='+', type=at_least_one, default=[1, 4])
    parser.add_argument('--rivals', nargs='+', choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument('--rounds', type=at_least_one, default=7)
    parser.add_argument('--threads', type=at_least_one, default=2)
    parser.add_argument('--architecture', choices=list(ARCHITECTURES), default='tiny')
    parser.add_argument('--weights', help='a checkpoint of it; random weights without')
    parser.add_argument('--json', type=Path, help='file for the figures; plots go beside it')
    args = parser.parse_args(argv)
    if args.quick:
        args.sizes, args.batches, args.rivals = [MAIN_SIZE], [1], QUICK
    return args


def checked_size(text: str) -> str:
    """'HxW' as it is."""
    if not re.fullmatch(r'[1-9]\d*x[1-9]\d*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no size; write it as 800x1216')
    return text


def at_least_one(text: str) -> int:
    """A count."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} must be a whole number of at least 1')
    return int(text)


def write(found: dict[str, Any], path: Path | None) -> None:
    """The cases so far with their verdict, and their plot."""
    cases = found['cases']
    main_case = next((case for case in cases if (case['size'], case['batch']) == (MAIN_SIZE, 1)), cases[0])
    found['verdict'] = verdict(main_case)
    if path:
        write_whole(path, json.dumps(found, indent=1) + '\n')
        if len(cases) > 1:
            plot_growth(cases, path.with_suffix('.png'))


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_args(argv)
    found: dict[str, Any] = {**describe_device(), 'architecture': args.architecture, 'threads': args.threads}
    found |= {'rounds': args.rounds, 'cases': []}
    names = [name for name in RIVALS if name in {STOCK, OURS, *args.rivals}]
    for batch in args.batches:
        for size in args.sizes:
            found['cases'].append(measure(names, batch, size, args))
            write(found, args.json)  # a case takes minutes
    print('\n'.join(found['verdict']))


if __name__ == '__main__':
    main()
