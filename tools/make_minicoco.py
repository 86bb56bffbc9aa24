"""Make mini-COCO, a COCO-format instance segmentation set drawn from code alone (docs/minicoco.md).

python tools/make_minicoco.py --out data/minicoco

It runs in a checkout: what draws the set lies in benchmarks/minicoco, which no wheel carries.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))

from minicoco.files import verify, write_atomic
from minicoco.plan import SPLITS, TWINS, Plan, planned_splits, twin_names
from minicoco.progress import show_progress
from minicoco.sheet import save_contact_sheet
from minicoco.stats import markdown, set_statistics
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
    look = parser.add_argument_group('look at the set in --out instead of making one')
    look.add_argument('--verify', action='store_true', help='compare pixels and annotations with the manifest')
    look.add_argument('--stats', action='store_true', help='print statistics of every split but test')
    look.add_argument('--json', type=Path, metavar='FILE', help='also write the statistics to this file')
    look.add_argument('--sheet', type=Path, metavar='FILE', help='save a contact sheet (.png or .jpg)')
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


def look_at(arguments: argparse.Namespace) -> int:
    """The commands that read an existing set; 1 when it differs from its manifest."""
    wrong = verify(arguments.out) if arguments.verify else []
    if arguments.verify:
        print('\n'.join(f'differs: {name}' for name in wrong) or 'every picture and annotation is as the manifest says')
    if arguments.stats or arguments.json:
        statistics = set_statistics(arguments.out)
        print(markdown(statistics))
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(arguments.json, (json.dumps(statistics, indent=1) + '\n').encode())
    if arguments.sheet:
        save_contact_sheet(arguments.out, arguments.sheet)
        print(f'contact sheet: {arguments.sheet}')
    return int(bool(wrong))


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    if arguments.verify or arguments.stats or arguments.sheet or arguments.json:
        return look_at(arguments)
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
    except KeyboardInterrupt:
        sys.exit('interrupted: the set is unfinished, run again with --overwrite')
