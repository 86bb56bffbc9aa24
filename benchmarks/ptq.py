"""What post-training quantization costs: calibration passes, memory, and the fake-quantized forward.

    python benchmarks/ptq.py [--size 800 1216] [--images 2] [--rounds 5] [--json docs/results/ptq_cost.json]

Swin-T with random weights and images (fixed seed), RepQ W4A8 with A4 low windows, half the windows low in every pair.
Times alternate between the two models in one process, medians of per-round ratios count; each peak of memory is taken
in a process of its own. The last line is the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.reporting.files import write_whole

QUANT = {'method': 'RepQ', 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4}
LIMITS = {'block forwards per image': 6.0, 'memory': 2.0, 'forward': 1.8}


def build(quant: dict[str, Any] | None) -> nn.Module:
    """Swin-T with half the windows low; the same weights with and without ``quant``."""
    torch.manual_seed(0)
    stock = TwoBranchSwin(low_ratios=0.5)
    stock.init_weights()
    if quant is None:
        return stock.eval()
    model = TwoBranchSwin(low_ratios=0.5, quant=quant)
    model.load_state_dict({name: value for name, value in stock.state_dict().items() if '_low' not in name})
    return model.eval()


def make_images(number: int, size: tuple[int, int]) -> list[torch.Tensor]:
    """Normalised noise, one tensor (1, 3, H, W) per image."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 3, *size, generator=generator) for _ in range(number)]


def timed(model: nn.Module, image: torch.Tensor) -> float:
    """Seconds of one forward."""
    start = time.perf_counter()
    with torch.no_grad():
        model(image)
    return time.perf_counter() - start


def count_block_forwards(model: nn.Module, number: int) -> dict[str, float]:
    """Install a counter of windows run; the dict it fills holds block forwards per image of the busiest block."""
    run: dict[nn.Module, float] = {}
    found = {'block forwards per image': 0.0}

    def count(block: nn.Module, inputs: tuple, _: torch.Tensor) -> None:
        counts = inputs[1].counts
        run[block] = run.get(block, 0.0) + (counts.high + counts.low) / sum(counts)
        found['block forwards per image'] = max(run.values()) / number

    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_hook(count)
    return found


def peak_above_start(work: Any) -> int:
    """Bytes by which ``work`` raises the process's resident memory at its peak (Linux)."""
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak of starting up
    before = _status_bytes('VmRSS')
    work()
    return _status_bytes('VmHWM') - before


def _status_bytes(field: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))


def measure_memory(what: str, number: int, size: tuple[int, int]) -> int:
    """Run in a process of its own: peak bytes of a float forward, or of a calibration."""
    model, pictures = build(QUANT if what == 'calibration' else None), make_images(number, size)
    if what == 'calibration':
        return peak_above_start(lambda: Calibrator(model).run(pictures))
    return peak_above_start(lambda: timed(model, pictures[0]))


def child(what: str, args: argparse.Namespace) -> int:
    """``measure_memory`` in a subprocess."""
    command = [
        sys.executable,
        __file__,
        '--measure',
        what,
        '--images',
        str(args.images),
        '--size',
        *map(str, args.size),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    size = tuple(args.size)
    pictures = make_images(args.images, size)
    reference, model = build(None), build(QUANT)
    forwards = count_block_forwards(model, args.images)
    start = time.perf_counter()
    Calibrator(model).run(pictures)
    calibration = time.perf_counter() - start
    block_forwards = forwards['block forwards per image']  # later forwards go on counting
    timed(reference, pictures[0])
    timed(model, pictures[0])
    rounds = [(timed(reference, pictures[0]), timed(model, pictures[0])) for _ in range(args.rounds)]
    float_forward = statistics.median(a for a, _ in rounds)

    stored = args.images * 4 * (3 * size[0] * size[1] + 96 * -(-size[0] // 4) * -(-size[1] // 4))
    memory = {what: child(what, args) for what in ('float', 'calibration')}
    return {
        'block forwards per image': block_forwards,
        'memory': (memory['calibration'] - stored) / memory['float'],
        'forward': statistics.median(b / a for a, b in rounds),
        'calibration in float forwards per image': calibration / args.images / float_forward,
        'forward ratios': [b / a for a, b in rounds],
        'memory bytes': {**memory, 'stored block inputs': stored},
        'size': list(size),
        'images': args.images,
        'quant': QUANT,
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'processor': platform.processor() or platform.machine(),
        'load average': os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=int, nargs=2, default=[800, 1216], metavar=('H', 'W'))
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', type=Path, help='file that the figures are written to')
    parser.add_argument('--measure', choices=['float', 'calibration'], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure_memory(args.measure, args.images, tuple(args.size)))
        return
    result = measure(args)
    print(json.dumps(result, indent=1))
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + '\n')
    verdicts = [f'{name} {result[name]:.2f} (limit {limit})' for name, limit in LIMITS.items()]
    held = all(result[name] <= limit for name, limit in LIMITS.items())
    print(f'{"holds" if held else "MISSED"}: {", ".join(verdicts)}')


if __name__ == '__main__':
    main()
