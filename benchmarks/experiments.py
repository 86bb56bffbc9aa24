"""Runs the project's experiments and renders their pages (docs/evidence.md).

python benchmarks/experiments.py list                     stages, hours, what is done
python benchmarks/experiments.py run --stage float        run what is missing of a stage; again after a kill
python benchmarks/experiments.py run --tier core          all core stages
python benchmarks/experiments.py render                   pages from the result files
python benchmarks/experiments.py show NAME                one result
python benchmarks/experiments.py orphans [--remove]       run files that no page reads
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evidence import claims, splits
from evidence.experiment import REPOSITORY, Experiment, fingerprint, training_split
from evidence.orphans import orphans
from evidence.page import Page
from evidence.reader import Reader
from evidence.render import render
from evidence.runner import Runner
from evidence.screen import Screen
from evidence.stage import Stage, ordered, select
from evidence.store import Store
from evidence.workplace import STORE_VARIABLE, default_root


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--plans', default='evidence.plans', help='module that holds STAGES and TOPICS')
    parser.add_argument('--results', type=Path, default=REPOSITORY / 'docs' / 'results', help='where results lie')
    parser.add_argument(
        '--work', type=Path, default=default_root(), help=f'where experiments work; else {STORE_VARIABLE} says it'
    )
    commands = parser.add_subparsers(dest='action', required=True)
    for name, text in (('list', 'stages and what is done'), ('run', 'run what is missing')):
        command = commands.add_parser(name, help=text)
        command.add_argument('--stage', nargs='+', help='only these stages')
        command.add_argument('--tier', choices=('core', 'full'), help='all stages of a tier; full includes core')
        if name == 'run':
            command.add_argument('--experiment', nargs='+', help='only these experiments, by name')
            command.add_argument('--dry-run', action='store_true', help='show what would run')
            command.add_argument('--hours', type=float, help='start nothing after so many hours')
            command.add_argument('--open-test', action='store_true', help='allow the test splits (make reproduce)')
    command = commands.add_parser('render', help='pages from the result files')
    command.add_argument('topic', nargs='*', help='only these pages')
    command = commands.add_parser('show', help='one result')
    command.add_argument('name', help='name or hash of an experiment')
    command = commands.add_parser('orphans', help='run files that no page reads')
    command.add_argument('--remove', action='store_true', help='delete them')
    return parser.parse_args(arguments)


def chosen(options: argparse.Namespace, stages: Sequence[Stage]) -> list[Stage]:
    """The stages of the command line, cut down to --experiment; `run` alone means the core tier."""
    names = getattr(options, 'experiment', None)
    tier = options.tier or ('core' if options.action == 'run' and not names else None)
    stages = select(stages, options.stage, tier)
    if not names:
        return stages
    known = {experiment.name for stage in stages for experiment in stage.experiments}
    for name in names:
        if name not in known:
            raise ValueError(f'--experiment {name!r} is unknown; use one of {sorted(known)}')
    cut = [replace(s, experiments=[e for e in s.experiments if e.name in names]) for s in stages]
    return [stage for stage in cut if stage.experiments]


def run(options: argparse.Namespace, stages: Sequence[Stage], pages: dict[str, Page]) -> int:
    """Run what is missing, then render the pages of the stages."""
    store = Store(options.results)
    stages = chosen(options, stages)
    protocol = claims.read_claims(store.root / 'protocol.md') if any(stage.claims for stage in stages) else {}
    for stage in stages:
        claims.require(protocol, tuple(stage.claims), stage.name)
    screen = Screen(store)
    runner = Runner(store, options.work, changed=screen.show, hours=options.hours)
    tasks = runner.plan(stages)
    if options.dry_run:
        screen.console.print(screen.task_table(tasks) if tasks else 'nothing is missing')
        return 0
    check_data([task.experiment for task in tasks], options.open_test)
    with screen.running():
        code = runner.run(stages)
    if runner.tasks:
        screen.console.print(screen.task_table(runner.tasks))
    for task in runner.tasks:
        if '\n' in task.message:
            screen.console.print(f'{task.title}: {task.message}', markup=False, highlight=False)
    reader = reader_of(store, pages)
    for name in dict.fromkeys(topic for stage in stages for topic in stage.topics):
        render(pages[name], reader)
        screen.console.print(f'rendered {store.root / name}.md', highlight=False)
    return code


def reader_of(store: Store, pages: dict[str, Page]) -> Reader:
    """A reader that knows what decides the claims of every page."""
    return Reader(
        store, comparisons={name: decides for page in pages.values() for name, decides in page.claims.items()}
    )


def check_data(experiments: Sequence[Experiment], open_test: bool) -> None:
    """Splits must be there before hours are spent, and the test splits must be opened on purpose."""
    sealed = sorted({experiment.name for experiment in experiments if experiment.sealed})
    if sealed and not open_test:
        raise ValueError(f'{sealed} open a test split; `make reproduce` does that, with --open-test')
    wanted = {split for e in experiments for split in (e.split, training_split(e)) if split}
    for split in sorted(wanted):
        splits.require(REPOSITORY, split)


def list_stages(options: argparse.Namespace, stages: Sequence[Stage]) -> int:
    """Print the stages."""
    store = Store(options.results)
    stages = chosen(options, stages)
    finished = {}
    for stage in stages:
        done = sum(is_done(experiment, store) for experiment in stage.experiments)
        finished[stage.name] = (done, len(stage.experiments))
    screen = Screen(store)
    screen.console.print(screen.stage_table(stages, finished))
    return 0


def is_done(experiment: Experiment, store: Store) -> bool:
    """Whether there is a result; not, where what it starts from does not exist yet."""
    try:
        return store.has(fingerprint(experiment))
    except ValueError:
        return False


def show(options: argparse.Namespace, stages: Sequence[Stage]) -> int:
    """Print one result."""
    store = Store(options.results)
    named = [e for stage in stages for e in stage.experiments if e.name == options.name]
    key = fingerprint(named[0]) if named else options.name
    if not store.has(key):
        raise ValueError(f'{options.name!r} has no result yet; `python benchmarks/experiments.py list` shows what has')
    print(json.dumps(store.read(key), indent=1, sort_keys=True))
    return 0


def list_orphans(options: argparse.Namespace, pages: dict[str, Page]) -> int:
    """Print run files that no page reads, or delete them; it takes as long as rendering every page."""
    found = orphans(pages.values(), reader_of(Store(options.results), pages))
    for path in found:
        print(f'{path.stat().st_size:>9} {path}')
        if options.remove:
            path.unlink()
    print(f'{len(found)} files that no page reads{", removed" if options.remove else ""}')
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; user errors are one line."""
    options = parse(arguments)
    plans = importlib.import_module(options.plans)
    stages, pages = ordered(plans.STAGES), {page.name: page for page in plans.TOPICS}
    try:
        if options.action == 'run':
            return run(options, stages, pages)
        if options.action == 'list':
            return list_stages(options, stages)
        if options.action == 'show':
            return show(options, stages)
        if options.action == 'orphans':
            return list_orphans(options, pages)
        reader = reader_of(Store(options.results), pages)
        for name in options.topic or pages:
            if name not in pages:
                raise ValueError(f'topic {name!r} is unknown; use one of {sorted(pages)}')
            render(pages[name], reader)
    except ValueError as error:
        sys.exit(f'error: {error}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
