"""What the runner shows: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .runner import BLOCKED, DONE, ELSEWHERE, FAILED, RUNNING, STOPPED, WAITING, Task
from .stage import Stage
from .store import Store

STYLES = {
    WAITING: 'dim',
    RUNNING: 'bold cyan',
    DONE: 'green',
    FAILED: 'bold red',
    BLOCKED: 'yellow',
    ELSEWHERE: 'yellow',
    STOPPED: 'yellow',
}


class Screen:
    """Shows tasks while they run."""

    def __init__(self, store: Store, console: Console | None = None) -> None:
        self.store = store
        self.console = console or Console()
        self._live: Live | None = None
        self._told: dict[int, str] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this is entered, ``show`` updates one table in place (on a terminal)."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, refresh_per_second=2, transient=True) as self._live:
            yield
        self._live = None

    def show(self, tasks: Sequence[Task]) -> None:
        """Show the present states."""
        if self._live is not None:
            self._live.update(self.task_table(tasks))
            return
        for number, task in enumerate(tasks, 1):
            if task.state != WAITING and self._told.get(number) != task.state:
                self._told[number] = task.state
                text = (
                    f'[{number}/{len(tasks)}] {task.title}: {task.state} {self._result(task)} {task.message}'.rstrip()
                )
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def task_table(self, tasks: Sequence[Task]) -> Table:
        """One row per experiment."""
        table = Table(title='experiments')
        for name in ('stage', 'experiment', 'state', 'minutes', 'box AP', ''):
            table.add_column(name, justify='right' if name in ('minutes', 'box AP') else 'left')
        for task in tasks:
            minutes = f'{task.seconds / 60:.1f}' if task.seconds else ''
            state = f'[{STYLES[task.state]}]{task.state}[/]'
            message = task.message.splitlines()[0] if task.message else ''
            table.add_row(task.stage, task.title, state, minutes, self._result(task), message)
        return table

    def stage_table(self, stages: Sequence[Stage], finished: dict[str, tuple[int, int]]) -> Table:
        """One row per stage; ``finished``: (done, all) experiments by stage."""
        table = Table(title='stages')
        for name in ('stage', 'tier', 'hours', 'done', 'claims', 'what'):
            table.add_column(name, justify='right' if name in ('hours', 'done') else 'left')
        for stage in stages:
            done, total = finished[stage.name]
            style = 'green' if done == total else None
            claims = ' '.join(stage.claims)
            table.add_row(
                stage.name, stage.tier, f'{stage.hours:g}', f'{done}/{total}', claims, stage.title, style=style
            )
        return table

    def _result(self, task: Task) -> str:
        if task.state != DONE or task.checkpoint_only:
            return ''
        value = self.store.read(task.key)['metrics'].get('coco/bbox_mAP')
        return '' if value is None else f'{100 * value:.1f}'
