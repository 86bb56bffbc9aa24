"""Which state of the code made a result."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DECIDING = (
    'mixaq_mmdet',
    'benchmarks',
    'configs',
    'tools',
    'checkpoints',
)  # a page edited by hand makes no result dirty


def source(repository: Path = REPOSITORY) -> dict[str, Any]:
    """The commit of a checkout, and whether it holds code that the commit does not; None where there is no git."""
    commit = _git(repository, 'rev-parse', 'HEAD')
    changes = None if commit is None else _git(repository, 'status', '--porcelain', '--', *DECIDING)
    return {'commit': commit, 'dirty': None if changes is None else bool(changes)}


def _git(repository: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(['git', *words], cwd=repository, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
