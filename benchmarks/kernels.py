"""Processor time of the integer kernels, part by part, and the rate of single products beside oneDNN's.

    python benchmarks/kernels.py [--size 800x1216] [--rounds 5] [--json docs/results/kernels.json]

Swin-T, batch 1, random weights, every window high. One thread's processor time: it does not count what other processes
take, but a shared core's lower rate still shows in it. The least of the rounds is reported.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernel_products import print_rates, product_rates
from timing import describe_device

from mixaq_mmdet.deploy import kernels as package
from mixaq_mmdet.deploy.kernels.build import MATRIX_FEATURES
from mixaq_mmdet.deploy.layouts import BlockWeights, BranchGrids, Grid, LinearWeights, ProbabilityGrid
from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.windows.assignment import assign, tier_counts
from mixaq_mmdet.windows.geometry import window_grid

DEPTHS, CHANNELS, HEADS, WINDOW = (2, 2, 6, 2), 96, 3, 7
GRID = Grid(6 / 255, 128, 8)
HELD_BY_W4A8 = (2**15 - 1) // (2 * 255 * 8)


def layer(outputs: int, inputs: int) -> LinearWeights:
    """Random asymmetric weights."""
    codes = torch.randint(-128, 128, (outputs, inputs)).to(torch.int8)
    zero_point = torch.randint(-20, 20, (outputs,), dtype=torch.int32)
    return LinearWeights(codes, torch.full((outputs,), inputs**-0.5 / 60), zero_point, torch.zeros(outputs))


def block_weights(channels: int, heads: int) -> BlockWeights:
    """A random block with the grids of RepQ W8A8."""
    grids = BranchGrids(GRID, GRID, GRID, GRID, ProbabilityGrid(2, 1.0, 0, 8), GRID, GRID, GRID)
    tokens = WINDOW**2
    return BlockWeights(
        qkv=layer(3 * channels, channels),
        proj=layer(channels, channels),
        fc1=layer(4 * channels, channels),
        fc2=layer(channels, 4 * channels),
        norm1=(torch.ones(2, channels), torch.zeros(2, channels)),
        norm2=(torch.ones(2, channels), torch.zeros(2, channels)),
        bias=torch.randn(4, heads, tokens, tokens),
        pad_qkv=torch.zeros(3 * channels),
        grids=(grids, grids),
        num_heads=heads,
        scale=(channels // heads) ** -0.5,
    )


def parts(height: int, width: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    """How often the backbone runs each part, and the part."""
    loaded, reason = package.load()
    if loaded is None:
        raise SystemExit(f'no integer kernels here: {reason}')
    images = torch.randn(1, 3, height, width)
    embedding = package.IntegerEmbedding(loaded, layer(CHANNELS, 48), GRID, torch.ones(CHANNELS), torch.zeros(CHANNELS))
    found: dict[str, tuple[int, Callable[[], Any]]] = {'embedding': (1, lambda: embedding.run(images, 1))}
    size = -(-height // 4), -(-width // 4)
    for stage, depth in enumerate(DEPTHS):
        channels, heads = CHANNELS * 2**stage, HEADS * 2**stage
        stream = torch.randn(size[0] * size[1], channels)
        grid = window_grid(*size, WINDOW, WINDOW // 2)
        run = assign(None, tier_counts(len(grid.rows), 0.0), grid, 1).runs[0]
        block = package.IntegerBlock(loaded, block_weights(channels, heads))
        found[f'block of stage {stage + 1}'] = depth, lambda b=block, s=stream, r=run: b.run(s.clone(), r, 1)
        norm = torch.ones(channels), torch.zeros(channels)
        found[f'output norm {stage + 1}'] = (
            1,
            lambda s=stream, n=norm, z=size: package.output_norm(loaded, s[None], *n, z, threads=1),
        )
        if stage + 1 < len(DEPTHS):
            merging = package.IntegerMerging(
                loaded, layer(2 * channels, 4 * channels), torch.ones(4 * channels), torch.zeros(4 * channels), GRID
            )
            found[f'merging {stage + 1}'] = 1, lambda m=merging, s=stream, z=size: m.run(s[None], z, 1)
        size = -(-size[0] // 2), -(-size[1] // 2)
    return found


def least(work: Callable[[], Any], rounds: int) -> float:
    """Seconds of the fastest round after an untimed one."""
    work()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', default='800x1216')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', type=Path, default=Path('docs/results/kernels.json'))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    height, width = (int(side) for side in options.size.split('x'))
    with torch.no_grad():
        seconds = {name: times * least(work, options.rounds) for name, (times, work) in parts(height, width).items()}
        x, weight = torch.randn(3800, 384), torch.randn(1536, 384)
        float_rate = x.numel() * len(weight) / least(lambda: x @ weight.t(), options.rounds)
        rates = {'gmac_per_second': product_rates()}
        loaded = package.load()[0]
        if loaded.on_matrices:
            rates['gmac_per_second_tiles'] = product_rates(more_features=MATRIX_FEATURES)
        if loaded.instructions == 'AVX2':  # the one that takes products by the widths of codes
            rates['gmac_per_second_w4a8'] = product_rates(HELD_BY_W4A8)
    total = sum(seconds.values())
    result = {
        'device': describe_device('cpu'),
        'size': options.size,
        'threads': 1,
        'float_gmac_per_second': float_rate / 1e9,
        'cpu_seconds': seconds,
        'total': total,
        **rates,
    }
    write_whole(options.json, json.dumps(result, indent=2) + '\n')
    for name, value in seconds.items():
        print(f'{name:20} {value / total:6.1%}')
    for name, table in rates.items():
        print(name)
        print_rates(table)
    print(f'one thread in all {total:.3f} s; float product beside it {float_rate / 1e9:.0f} GMAC/s')


if __name__ == '__main__':
    main()
