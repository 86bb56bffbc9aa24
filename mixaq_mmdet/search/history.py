"""history.jsonl: one line for each finished evaluation, written so that a kill at any moment loses at most itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .space import Candidate

Scores = dict[str, float]


class History:
    """What has been evaluated.

    The first line says what every score depends on (model, checkpoint, images); a history of something else is
    refused. A torn last line, left by a kill or a full disk, is cut off.

    Args:
        path: the file; None keeps nothing on disk (ranks other than 0).
        subject: what the scores depend on, plain JSON.
        resume: go on from an existing file.
    """

    def __init__(self, path: Path | None, subject: Mapping[str, Any], resume: bool = False) -> None:
        self.path = path
        self.scores: dict[Candidate, Scores] = {}
        if path is None:
            return
        if path.exists() and path.stat().st_size and not resume:
            raise ValueError(f'{path} holds an earlier search; add --resume to continue, or give another --work-dir')
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._whole_lines(path) if path.exists() else []
        if lines:
            records = [self._read(number, line) for number, line in enumerate(lines, start=1)]
            self._check(records[0], json.loads(json.dumps(subject)))
            self.scores.update(records[1:])
        else:
            self._append({'subject': subject})

    def add(self, candidate: Candidate, scores: Scores, seconds: float) -> None:
        """Remember a finished evaluation, on disk before this returns."""
        self.scores[candidate] = scores
        self._append(
            {
                'low': list(candidate.low),
                'prune': list(candidate.prune),
                'scores': scores,
                'seconds': round(seconds, 3),
            }
        )

    def _append(self, record: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, (json.dumps(record) + '\n').encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def _read(self, number: int, line: bytes) -> Any:
        """The subject of the first line, (candidate, scores) of another."""
        try:
            record = json.loads(line)
            if number > 1:
                return _evaluation(record)
            if not isinstance(record['subject'], dict):
                raise ValueError('no subject of scores')
            return record['subject']
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = 'line' if number > 1 else 'file'  # no other line counts without the first
            raise ValueError(
                f'{self.path}: line {number} is damaged ({error}); delete the {what}, or give another --work-dir'
            ) from error

    @staticmethod
    def _whole_lines(path: Path) -> list[bytes]:
        content = path.read_bytes()
        whole = content[: content.rfind(b'\n') + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        return whole.splitlines()

    def _check(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        differing = sorted(key for key in {*there, *here} if there.get(key) != here.get(key))
        if differing:
            raise ValueError(
                f'{self.path} was made with other {", ".join(differing)}; its scores are not valid here: give another '
                '--work-dir, or the same arguments as then'
            )


def _evaluation(record: dict[str, Any]) -> tuple[Candidate, Scores]:
    low, prune = (tuple(record[name]) for name in ('low', 'prune'))
    scores = {name: float(value) for name, value in record['scores'].items()}
    if len(low) != len(prune) or not all(isinstance(tenths, int) for tenths in low + prune):
        raise ValueError('ratios must be whole tenths, as many low as prune')
    return Candidate(low, prune), scores
