"""``torch.compile`` of the backbone against stock Swin-T: the first call, and a forward once it is compiled.

    python benchmarks/compile_times.py [--size 224x224] [--rounds 3] [--json docs/results/compile_times.json]

Each arm is compiled whole (``fullgraph=True``, fixed shapes) in a process of its own with an empty cache, and the arms
alternate. A first call is compared with stock's of the same round, a forward with the same model without a compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import alternate, describe_device
from timing import ratios as ratios_of
from torch import nn
from two_branch import make_images

from mixaq_mmdet import calibrate
from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.reporting.markdown import markdown_table

STOCK = 'stock'
QUANT = dict(method='RepQ', w_bits=4, a_bits=8, low_a_bits=4)
# (quantizers, low ratio) of our arms
ARMS: dict[str, tuple[dict[str, Any] | None, float] | None] = {
    STOCK: None,
    'float, all high': (None, 0.0),
    'float, half low': (None, 0.5),
    'simulated W4A8, low A4, half low': (QUANT, 0.5),
}


def build(arm: str, size: str) -> nn.Module:
    """Swin-T in eval mode, the same weights in every arm; quantized ones are calibrated on noise."""
    from mmdet.models.backbones import SwinTransformer

    torch.manual_seed(0)
    stock = SwinTransformer()
    stock.eval()  # mmdet's returns nothing
    made = ARMS[arm]
    if made is None:
        return stock
    quant, low = made
    model = TwoBranchSwin(quant=quant, low_ratios=low)
    model.load_state_dict(stock.state_dict(), strict=quant is None)
    model.eval()
    if quant:
        calibrate(model, make_images(1, size, 'cpu'))
    return model


@torch.no_grad()
def compile_once(arm: str, size: str) -> dict[str, float]:
    """Seconds of the first compiled call, and the compiled forward relative to the plain one."""
    model, image = build(arm, size), make_images(1, size, 'cpu')
    model(image)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    start = time.perf_counter()
    compiled(image)
    first = time.perf_counter() - start
    seconds = alternate({'plain': lambda: model(image), 'compiled': lambda: compiled(image)}, rounds=5)
    return {'first call': first, 'forward': ratios_of(seconds, 'plain')['compiled']['median']}


def in_a_process(arm: str, size: str) -> dict[str, float]:
    """:func:`compile_once` where nothing was compiled before."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, '--arm', arm, '--size', size],
            capture_output=True,
            text=True,
            env={**os.environ, 'TORCHINDUCTOR_CACHE_DIR': cache},
        )
    if done.returncode:
        raise RuntimeError(f'{arm} did not compile:\n{done.stderr}')
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(arm: str, found: list[dict[str, float]], stock: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds."""
    first = [own['first call'] for own in found]
    return {
        'arm': arm,
        'first call, seconds': round(statistics.median(first), 1),
        'first call / stock': round(
            statistics.median(a / b['first call'] for a, b in zip(first, stock, strict=True)), 2
        ),
        'compiled forward / plain': round(statistics.median(own['forward'] for own in found), 2),
    }


def measure(size: str, rounds: int) -> dict[str, Any]:
    """Every arm in every round, printed as they come."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm, own in found.items():
            own.append(in_a_process(arm, size))
            print(f'round {number + 1}, {arm}: first call {own[-1]["first call"]:.1f} s', flush=True)
    return {
        'command': f'python benchmarks/compile_times.py --size {size} --rounds {rounds}',
        'rows': [summary(arm, own, found[STOCK]) for arm, own in found.items()],
        'rounds': found,
        'environment': describe_device(),
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='224x224', metavar='HxW')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--arm', choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.arm:
        print(json.dumps(compile_once(args.arm, args.size)))
        return
    found = measure(args.size, args.rounds)
    print(markdown_table([*found['rows'][0]], [[*row.values()] for row in found['rows']]))
    if args.json:
        write_whole(args.json, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
