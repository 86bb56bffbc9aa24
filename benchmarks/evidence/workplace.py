"""The folder an experiment works in: its lock, its log, its checkpoint. Not committed, may be deleted at any time.

It lies outside of the checkout, so that a fresh clone finds the trainings of another again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .experiment import file_digest
from .store import write_json

STORE_VARIABLE = 'MIXAQ_EVIDENCE_STORE'


def default_root() -> Path:
    """Where experiments work: ``$MIXAQ_EVIDENCE_STORE``, else below the user's cache folder."""
    if chosen := os.environ.get(STORE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mixaq_mmdet' / 'evidence'


class Workplace:
    """``<root>/<hash>``."""

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

    def begin_attempt(self, source: Mapping[str, Any], data: Mapping[str, str]) -> list[dict[str, Any]]:
        """Note this attempt; returns the sources of all attempts, one where nothing was interrupted.

        Args:
            source: the commit that this attempt runs.
            data: digest of the split that it trains on, by name.
        """
        self.require_data(data)
        sources = [*self._known().get('sources', ()), dict(source)]
        write_json(self._attempts, {'sources': sources, 'data': dict(data)})
        return sources

    def require_data(self, data: Mapping[str, str]) -> None:
        """Refuse what an attempt on other data left: clones share the store, not their data."""
        for split, digest in self._known().get('data', {}).items():
            if data.get(split, digest) != digest:
                raise ValueError(
                    f'{self.folder} was trained on other data (split {split!r}); move it away, or give this data set a '
                    f'store of its own with {STORE_VARIABLE}'
                )

    def _known(self) -> dict[str, Any]:
        return json.loads(self._attempts.read_text()) if self._attempts.is_file() else {}

    def tail(self, lines: int = 25) -> str:
        """The end of the log, for a message."""
        return '\n'.join(self.log.read_text(errors='replace').splitlines()[-lines:]) if self.log.is_file() else ''
