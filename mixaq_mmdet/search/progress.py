"""Progress on rank 0: a bar with the best candidate so far on a terminal, one line per generation elsewhere."""

from __future__ import annotations

import time
from typing import Any

from mmengine.dist import is_main_process

from .report import LABELS, front_table
from .study import Study


class SearchProgress:
    """Use as a context; ``notify`` goes to the study, ``generation`` to the algorithm.

    Args:
        total: candidates that the search will ask for at most.
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console

        self.total = total
        self.console = Console(quiet=not is_main_process(), highlight=False)
        if not self.console.is_terminal:
            self.console = Console(quiet=not is_main_process(), highlight=False, width=120)
        self._live: Any = None
        self._begin = time.perf_counter()

    def __enter__(self) -> SearchProgress:
        if self.console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self.console, auto_refresh=False).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def notify(self, study: Study) -> None:
        """A candidate was answered."""
        if self._live is not None:
            from rich.console import Group

            self._live.update(Group(front_table(study.front()[-12:], study.best()[0], None), self._line(study)))
            self._live.refresh()
        elif study.measured == 1 and len(study.asked) == 1:
            self.console.print(self._line(study))

    def generation(self, number: int, study: Study) -> None:
        """A generation (or a round) has ended."""
        if self._live is None:
            candidate, scores = study.best()
            quality, cost = study.objectives
            self.console.print(
                f'generation {number}: {self._line(study)}; front of {len(study.front())}, best '
                f'{LABELS[quality]} {scores[quality]:.4g} at {LABELS[cost]} {scores[cost]:.3f}: {candidate}',
                soft_wrap=True,
            )

    def _line(self, study: Study) -> str:
        done = len(study.asked)
        line = f'{done}/{self.total} candidates, {study.measured} measured now'
        if study.measured:
            left = max(self.total - done, 0) * study.seconds / study.measured / 60
            line += f' ({study.seconds / study.measured:.1f} s each, at most {left:.0f} min left)'
        return line
