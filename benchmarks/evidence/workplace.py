"""The folder an experiment works in: its lock, its log, its checkpoint. Not committed, may be deleted at any time."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from .experiment import file_digest
from .store import write_json


class Workplace:
    """``work_dirs/experiments/<hash>``."""

    def __init__(self, root: str | Path, key: str) -> None:
        self.folder = Path(root) / key
        self.log = self.folder / 'log.txt'
        self._trained = self.folder / 'trained.json'
        self._attempts = self.folder / 'attempts.json'

    def lock(self) -> int | None:
        """A file descriptor that holds the experiment; None where another process works on it.

        The kernel drops the lock with its last holder, so a dead process leaves none behind. The child that does the
        work inherits the descriptor: a runner that is killed does not open the way to a second run beside the first.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / 'lock', os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f'{os.getpid()}\n'.encode())
        return descriptor

    def holder(self) -> str:
        """Process id of the runner that took the lock last."""
        path = self.folder / 'lock'
        return path.read_text().strip() if path.is_file() else ''

    def checkpoint(self) -> Path | None:
        """The checkpoint of a finished training."""
        if not self._trained.is_file():
            return None
        path = self.folder / json.loads(self._trained.read_text())['checkpoint']
        return path if path.is_file() else None

    def resumable(self) -> bool:
        """Whether an interrupted training left a whole checkpoint."""
        return self._last() is not None

    def finish_training(self) -> Path:
        """Mark the last checkpoint as the result of the training."""
        last = self._last()
        if last is None:
            raise ValueError(f'training ended without a checkpoint in {self.folder}; see {self.log}')
        write_json(self._trained, {'checkpoint': last.name, 'sha256': file_digest(last)})
        return last

    def _last(self) -> Path | None:
        pointer = self.folder / 'last_checkpoint'
        if not pointer.is_file() or not pointer.read_text().strip():
            return None
        path = self.folder / Path(pointer.read_text().strip()).name
        return path if path.is_file() else None

    def begin_attempt(self) -> int:
        """Count this attempt; the number is 1 where nothing was interrupted."""
        count = 1 + (json.loads(self._attempts.read_text())['attempts'] if self._attempts.is_file() else 0)
        write_json(self._attempts, {'attempts': count})
        return count

    def tail(self, lines: int = 15) -> str:
        """The end of the log, for a message."""
        return '\n'.join(self.log.read_text(errors='replace').splitlines()[-lines:]) if self.log.is_file() else ''
