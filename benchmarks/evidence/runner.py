"""Runs what is missing, one child process at a time; killed at any moment it loses nothing finished."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from .experiment import REPOSITORY, Experiment, fingerprint
from .stage import Stage
from .store import Store, write_json
from .workplace import Workplace

WAITING, RUNNING, DONE, FAILED, BLOCKED, ELSEWHERE, STOPPED = (
    'waiting',
    'running',
    'done',
    'failed',
    'blocked',
    'runs elsewhere',
    'stopped',
)
# not the module's own file as a script: it imports its neighbours as parts of a package
CHILD = 'import sys; sys.path.insert(0, sys.argv[1]); from evidence.worker import main; main(sys.argv[2])'
GRACE = 20  # seconds between asking a child to stop and killing it


@dataclass
class Task:
    """One experiment to run, or (``checkpoint_only``) one to train again because its checkpoint is gone."""

    experiment: Experiment
    key: str
    stage: str
    checkpoint_only: bool = False
    needs: str | None = None
    state: str = WAITING
    seconds: float = 0.0
    message: str = ''

    @property
    def title(self) -> str:
        """For tables."""
        return f'{self.experiment.name} (checkpoint)' if self.checkpoint_only else self.experiment.name


@dataclass
class Runner:
    """Works through stages.

    Args:
        store: where results go.
        work_root: where experiments work.
        repository: root of configs, tools and shipped checkpoints.
        changed: called whenever a task's state changed, and about once a second while one runs.
        hours: no new experiment starts after so many hours.
    """

    store: Store
    work_root: Path
    repository: Path = REPOSITORY
    changed: Callable[[Sequence[Task]], None] = lambda tasks: None
    hours: float | None = None
    tasks: list[Task] = field(default_factory=list)
    _child: subprocess.Popen | None = None
    _signal: int | None = None

    def plan(self, stages: Sequence[Stage]) -> list[Task]:
        """Tasks in order, each hash once, what an experiment starts from before it."""
        tasks: dict[tuple[str, bool], Task] = {}

        def add(experiment: Experiment, stage: str, for_checkpoint: bool = False) -> str | None:
            """Add what is missing; returns the key of the task that has to be waited for."""
            key = fingerprint(experiment, self.repository)
            finished = self.store.has(key)
            if finished and not (for_checkpoint and self._place(key).checkpoint() is None):
                return None
            if (key, finished) not in tasks:
                start = experiment.starts_from
                needs = add(start, stage, for_checkpoint=True) if isinstance(start, Experiment) else None
                tasks[key, finished] = Task(experiment, key, stage, checkpoint_only=finished, needs=needs)
            return key

        for stage in stages:
            for experiment in stage.experiments:
                add(experiment, stage.name)
        return list(tasks.values())

    def run(self, stages: Sequence[Stage]) -> int:
        """Run everything that is missing; 0 when nothing is left to do, 130 or 143 when stopped by a signal."""
        self.tasks = self.plan(stages)
        begin = time.monotonic()
        with self._signals():
            for task in self.tasks:
                if self._signal is not None or (
                    self.hours is not None and time.monotonic() - begin > self.hours * 3600
                ):
                    break
                self._attempt(task)
        self.changed(self.tasks)
        if self._signal is not None:
            return 128 + self._signal
        return 0 if all(task.state == DONE for task in self.tasks) else 1

    def _attempt(self, task: Task) -> None:
        blocker = next((t for t in self.tasks if t.key == task.needs and t.state != DONE), None)
        if blocker is not None:
            self._set(task, BLOCKED, f'needs {blocker.experiment.name}: {blocker.state}')
            return
        place = self._place(task.key)
        lock = place.lock()
        if lock is None:
            self._set(task, ELSEWHERE, f'process {place.holder()}')
            return
        try:
            if self._finished(task):  # by another runner, while this one was busy
                self._set(task, DONE)
                return
            self._set(task, RUNNING)
            self._work(task, place, lock)
        finally:
            os.close(lock)

    def _work(self, task: Task, place: Workplace, lock: int) -> None:
        specification = place.folder / 'experiment.json'
        content = {
            'experiment': task.experiment.as_dict(),
            'hash': task.key,
            'store': str(self.store.root.resolve()),
            'work': str(self.work_root.resolve()),
            'repository': str(self.repository),
            'checkpoint_only': task.checkpoint_only,
        }
        write_json(specification, content)
        begin = time.monotonic()
        with open(place.log, 'ab') as log:
            self._child = subprocess.Popen(
                [sys.executable, '-c', CHILD, str(Path(__file__).resolve().parents[1]), str(specification)],
                cwd=self.repository,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=[lock],
                start_new_session=True,  # its group can be stopped as one, data loaders included
            )
        code = self._wait(task, begin)
        self._child = None
        if self._signal is not None and code != 0:
            self._set(task, STOPPED, 'run again to resume')
        elif code == 0 and self._finished(task):
            self._set(task, DONE)
        else:
            self._set(task, FAILED, f'exit code {code}, log {place.log}\n{place.tail()}')

    def _wait(self, task: Task, begin: float) -> int:
        assert self._child is not None
        deadline: float | None = None
        while True:
            task.seconds = time.monotonic() - begin
            try:
                return self._child.wait(timeout=1)
            except subprocess.TimeoutExpired:
                self.changed(self.tasks)
            if self._signal is not None and deadline is None:
                deadline = time.monotonic() + GRACE
                self._tell(signal.SIGTERM)
            elif deadline is not None and time.monotonic() > deadline:
                self._tell(signal.SIGKILL)

    def _tell(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, number) if self._child else None

    def _finished(self, task: Task) -> bool:
        return self._place(task.key).checkpoint() is not None if task.checkpoint_only else self.store.has(task.key)

    def _place(self, key: str) -> Workplace:
        return Workplace(self.work_root, key)

    def _set(self, task: Task, state: str, message: str = '') -> None:
        task.state, task.message = state, message
        self.changed(self.tasks)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the run after the child has been stopped."""

        def remember(number: int, frame: FrameType | None) -> None:
            self._signal = number

        before = {number: signal.signal(number, remember) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
