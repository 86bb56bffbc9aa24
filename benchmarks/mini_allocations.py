"""Make the allocations of configs/mini/mask-rcnn_swin-mini_mixqvit-*.py anew.

    python benchmarks/mini_allocations.py [--images 8] [--calibration-images 32] [--dry-run]
                                          [--work-dir work_dirs/mini_allocations] [--recipes configs/mini]

Importance and sensitivity (KL proxy, five bit widths) of the shipped float model are measured once, on pictures of
`calib`; then each recipe is allocated from them. A measurement whose file is there is not repeated: delete the work
folder to start anew. The commands are printed; --dry-run prints them and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixaq_mmdet.reporting.files import write_whole
from mixaq_mmdet.search.allocation import bit_overrides

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/mini/mask-rcnn_swin-mini_ptq-w4a4.py'
CHECKPOINT = 'checkpoints/mask-rcnn_swin-mini_float.pth'
RECIPE = 'mask-rcnn_swin-mini_mixqvit-{}.py'


@dataclass(frozen=True)
class Allocation:
    """A recipe: the uniform bits that its budget is a share of, what is chosen, and the first line of the file."""

    name: str
    bits: int
    scope: str
    budget: float
    remark: str


LAYERS = 'Mix-QViT: bits per layer from {}, at most '
ALLOCATIONS = (
    Allocation('mp4', 4, 'layers', 1.0, f'{LAYERS}the cost and size of W4A4.'),
    Allocation('mp3', 3, 'layers', 1.0, f'{LAYERS}the cost and size of W3A3.'),
    Allocation('mp4-080', 4, 'layers', 0.8, f'{LAYERS}0.8 of the bit operations of W4A4.'),
    Allocation('mixaq-mp4', 4, 'both', 0.8, 'Bits per layer and ratios per block pair from {}, at most 0.8 of W4A4.'),
)


def measurements(args: argparse.Namespace) -> dict[Path, list[str]]:
    """The commands that measure, by the file that each writes."""
    own = [CONFIG, CHECKPOINT, '--images', str(args.images), '--work-dir', str(args.work_dir)]
    calibration = ['--calibration-images', str(args.calibration_images)]
    return {
        importance_file(args): ['tools/analyze.py', 'importance', *own],
        sensitivity_file(args): ['tools/analyze.py', 'sensitivity', *own, '--per-layer', *calibration],
    }


def importance_file(args: argparse.Namespace) -> Path:
    """Where ``analyze.py importance`` writes."""
    return args.work_dir / 'importance' / 'importance.json'


def sensitivity_file(args: argparse.Namespace) -> Path:
    """Where ``analyze.py sensitivity --per-layer`` writes."""
    return args.work_dir / 'sensitivity' / 'layer_sensitivity.json'


def search(allocation: Allocation, args: argparse.Namespace) -> list[str]:
    """The command that allocates."""
    edits = [f'model.backbone.quant.{kind}_bits={allocation.bits}' for kind in ('w', 'a')]
    return [
        'tools/search.py', CONFIG, CHECKPOINT, '--allocate', allocation.scope, '--budget', str(allocation.budget),
        '--images', str(args.images), '--calibration-images', str(args.calibration_images),
        '--importance', str(importance_file(args)), '--sensitivity', str(sensitivity_file(args)),
        '--work-dir', str(args.work_dir / allocation.name), '--cfg-options', *edits,
    ]  # fmt: skip


def recipe(allocation: Allocation, bits: Mapping[str, int], ratios: Sequence[float] | None) -> str:
    """The text of the recipe's file."""
    overrides = '\n'.join(f'    {override},' for override in bit_overrides(bits, low=ratios is not None))
    low = '' if ratios is None else f'\n        low_ratios={list(ratios)},'
    quant = f"method='MixQViT', w_bits={allocation.bits}, a_bits={allocation.bits}, overrides=overrides"
    return f"""# {allocation.remark.format(f'tools/search.py --allocate {allocation.scope}')}
_base_ = ['./{Path(CONFIG).name}']
custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)

overrides = [
{overrides}
]
model = dict(
    backbone=dict(
        quant=dict(_delete_=True, {quant}),{low}
    ),
)
"""


def run(command: Sequence[str], args: argparse.Namespace) -> None:
    """Print a command and run it from the repository's root."""
    print(f'python {shlex.join(command)}', flush=True)
    if not args.dry_run:
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing, allocate, write the recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=8, help='pictures of calib to measure on (default: 8)')
    parser.add_argument('--calibration-images', type=int, default=32, help='to calibrate each model on (default: 32)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/mini_allocations'))
    parser.add_argument('--recipes', type=Path, default=Path('configs/mini'), help='folder the recipes are written to')
    parser.add_argument('--dry-run', action='store_true', help='print the commands only')
    args = parser.parse_args(argv)
    for path, command in measurements(args).items():
        if not (ROOT / path).is_file():
            run(command, args)
    for allocation in ALLOCATIONS:
        run(search(allocation, args), args)
        if not args.dry_run:
            found = ROOT / args.work_dir / allocation.name / f'allocation_{Path(CONFIG).stem}.json'
            content = json.loads(found.read_text())
            text = recipe(allocation, content['bits'], content['low_ratios'])
            write_whole(ROOT / args.recipes / RECIPE.format(allocation.name), text)


if __name__ == '__main__':
    main()
