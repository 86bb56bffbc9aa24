"""A progress bar on a terminal, one line per finished part elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(total: int, quiet: bool = False) -> Iterator[Callable[[str, int], None]]:
    """Yields advance(part, pictures)."""
    if quiet:
        yield lambda part, pictures: None
    elif sys.stderr.isatty():
        yield from rich_bar(total)
    else:
        yield from plain_lines(total)


def rich_bar(total: int) -> Iterator[Callable[[str, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task('pictures', total=total)
        yield lambda part, pictures: bar.update(task, advance=pictures, description=part)


def plain_lines(total: int) -> Iterator[Callable[[str, int], None]]:
    state = {'part': '', 'done': 0}

    def advance(part: str, pictures: int) -> None:
        if part != state['part']:
            print(f'[{state["done"]}/{total}] {part}', file=sys.stderr, flush=True)
            state['part'] = part
        state['done'] += pictures

    yield advance
