"""Make mini-COCO, a COCO-format instance segmentation set drawn from code alone (docs/minicoco.md).

python tools/make_minicoco.py --out data/minicoco
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from minicoco.files import verify
from minicoco.plan import SPLITS, TWINS, Plan, planned_splits, twin_names
from minicoco.progress import show_progress
from minicoco.writer import available_cores, make_set


def build_parser() -> argparse.ArgumentParser:
    default = Plan()
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('data/minicoco'), metavar='DIR', help='folder of the set')
    for name, more in (
        ('train', ''),
        ('calib', ''),
        ('search', ''),
        ('val', ', also of val_wide and of every corrupted twin'),
        ('test', ', also of test_b'),
    ):
        parser.add_argument(f'--{name}', type=int, default=getattr(default, name), help=f'images of {name}{more}')
    parser.add_argument('--size', type=int, default=default.size, help='side of the square pictures in pixels')
    parser.add_argument('--seed', type=int, default=default.seed, help='seed of every random stream')
    parser.add_argument('--style', default=default.style, help='A or B; test_b is always B')
    parser.add_argument(
        '--severities', type=int, nargs='+', default=list(default.severities), help='of the twins, from 1 to 5'
    )
    parser.add_argument(
        '--splits', nargs='+', default=list(default.splits), metavar='SPLIT', help=f'of {", ".join((*SPLITS, TWINS))}'
    )
    parser.add_argument('--workers', type=int, default=0, help='processes; 0 takes one per core; changes no byte')
    parser.add_argument('--overwrite', action='store_true', help='replace a set that is already in the folder')
    parser.add_argument('--quiet', action='store_true', help='no progress bar')
    parser.add_argument('--verify', action='store_true', help='only compare an existing set with its manifest')
    parser.add_argument('--stats', action='store_true', help='only print statistics of an existing set')
    return parser


def plan_from(arguments: argparse.Namespace) -> Plan:
    counts = {name: getattr(arguments, name) for name in ('train', 'calib', 'search', 'val', 'test')}
    return Plan(
        **counts,
        size=arguments.size,
        seed=arguments.seed,
        style=arguments.style,
        severities=tuple(arguments.severities),
        splits=tuple(arguments.splits),
    )


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.verify:
        wrong = verify(arguments.out)
        print('\n'.join(wrong) if wrong else 'every picture and annotation file is as the manifest says')
        return int(bool(wrong))
    if arguments.workers < 0:
        raise ValueError(f'--workers is {arguments.workers}: choose 0 (one per core) or more')
    plan = plan_from(arguments)
    total = sum(split.count for split in planned_splits(plan)) + plan.val * len(twin_names(plan))
    with show_progress(total, quiet=arguments.quiet) as progress:
        make_set(arguments.out, plan, arguments.workers or available_cores(), arguments.overwrite, progress)
    print(f'{total} pictures in {arguments.out}')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f'error: {error}')
