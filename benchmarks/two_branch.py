"""The two-branch backbone against mmdet's stock Swin-T: forward, training step, peak memory.

    python benchmarks/two_branch.py [--quick] [--sizes 800x1216 224x224] [--batches 1 4] [--rounds 5]
                                    [--device cpu] [--clock wall]
                                    [--json docs/results/two_branch.json]

Same random weights and images. Times alternate in one process and the median of per-round ratios counts; each peak of
memory is taken in a process of its own. The last lines are the verdicts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import alternate, describe_device, peak_above_start, ratios
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.reporting.markdown import markdown_table

# (low ratio, prune ratio) of every block pair; None is stock Swin
ARMS: dict[str, tuple[float, float] | None] = {
    'stock': None,
    'all high': (0.0, 0.0),
    'half low': (0.5, 0.0),
    'half pruned': (0.0, 0.5),
}
LEAST_SECONDS = 20.0  # of every comparison: at 224x224 a forward takes a few hundredths, and single ones scatter
LIMITS = {
    ('forward', 'all high'): 1.0,
    ('forward', 'half low'): 1.05,
    ('forward', 'half pruned'): 0.6,
    ('step', 'all high'): 1.05,
    ('step', 'half low'): 1.05,
    ('forward memory', 'half low'): 1.0,
    ('step memory', 'half low'): 1.0,
}


def build(arm: str, device: str) -> nn.Module:
    """Swin-T with the weights that every arm has."""
    from mmdet.models.backbones import SwinTransformer

    torch.manual_seed(0)
    stock = SwinTransformer()
    if ARMS[arm] is None:
        return stock.to(device)
    model = TwoBranchSwin()
    model.load_state_dict(stock.state_dict())
    model.set_ratios(*ARMS[arm])
    return model.to(device)


def make_work(what: str, arm: str, images: Tensor) -> Callable[[], Any]:
    """A forward in eval mode without gradients, or a step: forward, backward, gradients dropped."""
    model = build(arm, str(images.device))
    model.train(what == 'step')

    @torch.no_grad()
    def forward() -> None:
        model(images)

    def step() -> None:
        sum(out.mean() for out in model(images)).backward()
        model.zero_grad(set_to_none=True)

    return forward if what == 'forward' else step


def make_images(batch: int, size: str, device: str) -> Tensor:
    """Normalised noise, (batch, 3, H, W)."""
    height, width = map(int, size.split('x'))
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).to(device)


def measure_times(what: str, batch: int, size: str, rounds: int, device: str, clock: str) -> dict[str, Any]:
    """Ratios to stock of every arm; a step with pruned windows is nobody's goal and is left out."""
    images = make_images(batch, size, device)
    arms = [arm for arm in ARMS if what == 'forward' or arm != 'half pruned']
    return ratios(
        alternate({arm: make_work(what, arm, images) for arm in arms}, rounds, device, clock, LEAST_SECONDS), 'stock'
    )


def measure_memory(what: str, arm: str, batch: int, size: str, device: str) -> int:
    """Peak of one arm in a process of its own, so that no arm finds memory that another left behind."""
    values = {'--measure': what, '--arm': arm, '--batches': str(batch), '--sizes': size, '--device': device}
    command = [sys.executable, __file__, *(part for pair in values.items() for part in pair)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr}')
    return int(done.stdout.strip().splitlines()[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures, printed as they come."""
    found: dict[str, Any] = {**describe_device(args.device), 'clock': args.clock, 'rounds': args.rounds, 'cases': []}
    for size in args.sizes:
        for batch in args.batches:
            for what in args.what:
                case: dict[str, Any] = {'size': size, 'batch': batch, 'what': what}
                case['time'] = measure_times(what, batch, size, args.rounds, args.device, args.clock)
                peaks = {arm: measure_memory(what, arm, batch, size, args.device) for arm in ('stock', 'half low')}
                case['memory'] = {'half low': peaks['half low'] / peaks['stock'], 'bytes': peaks}
                found['cases'].append(case)
                print(f'{size} batch {batch} {what}: {summary(case)}', flush=True)
    return found


def summary(case: dict[str, Any]) -> str:
    """One line."""
    times = [f'{arm} {r["median"]:.3f} ({r["least"]:.3f}-{r["most"]:.3f})' for arm, r in sorted(case['time'].items())]
    return ', '.join([*times, f'memory {case["memory"]["half low"]:.3f}'])


def as_table(found: dict[str, Any]) -> str:
    """The figures as Markdown; every one is relative to stock."""
    arms = ('all high', 'half low', 'half pruned')
    rows = [
        [
            case['size'],
            case['batch'],
            case['what'],
            *(_cell(case['time'].get(arm)) for arm in arms),
            case['memory']['half low'],
        ]
        for case in found['cases']
    ]
    lines = [
        '# Two branches in float\n\n'
        f"Swin-T relative to mmdet's stock Swin-T on {found['device']}, {found['threads']} thread(s), "
        f'torch {found["torch"]}, {found["rounds"]} rounds, {found["clock"]} clock: median (least - most).',
        '',
        markdown_table(['input', 'batch', '', *arms, 'peak memory, half low'], rows),
    ]
    return '\n'.join(lines) + '\n'


def _cell(ratio: dict[str, float] | None) -> str:
    return f'{ratio["median"]:.2f} ({ratio["least"]:.2f} - {ratio["most"]:.2f})' if ratio else ''


def verdicts(found: dict[str, Any]) -> list[str]:
    """One line for every limit and case."""
    lines = []
    for case in found['cases']:
        values = {(case['what'], arm): ratio['median'] for arm, ratio in case['time'].items()}
        values[f'{case["what"]} memory', 'half low'] = case['memory']['half low']
        for (what, arm), limit in LIMITS.items():
            if (what, arm) in values:
                value = values[what, arm]
                holds = 'holds ' if value <= limit else 'MISSED'
                lines.append(f'{holds} {case["size"]} batch {case["batch"]} {what}, {arm}: {value:.3f} (limit {limit})')
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='224x224, batch 1, five rounds')
    parser.add_argument('--sizes', nargs='+', default=['800x1216', '224x224'], metavar='HxW')
    parser.add_argument('--batches', nargs='+', type=int, default=[1, 4])
    parser.add_argument('--what', nargs='+', choices=['forward', 'step'], default=['forward', 'step'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall', help='cpu: on a machine others use, too')
    parser.add_argument('--json', type=Path, help='file for the figures; a table goes beside it')
    parser.add_argument('--measure', choices=['forward', 'step'], help=argparse.SUPPRESS)
    parser.add_argument('--arm', choices=list(ARMS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.batches, args.rounds = ['224x224'], [1], 5
    if args.measure:
        work = make_work(args.measure, args.arm, make_images(args.batches[0], args.sizes[0], args.device))
        print(peak_above_start(work, args.device))
        return
    found = measure(args)
    found['verdicts'] = verdicts(found)
    print('\n'.join(found['verdicts']))
    if args.json:
        write_whole(args.json, json.dumps(found, indent=1) + '\n')
        write_whole(args.json.with_suffix('.md'), as_table(found))


if __name__ == '__main__':
    main()
