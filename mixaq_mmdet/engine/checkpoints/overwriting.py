"""Refuses to start a run that would replace files of another run: a ``work_dir`` in a base config invites that."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUMMARY_FILE = 'calibration.json'
ALLOWED = 'allow_overwrite'
_WRITTEN = re.compile(r'(epoch|iter)_\d+\.pth')
_REMEDY = (
    f'give this run a work_dir of its own (--work-dir, or work_dir in its config), or allow it: --overwrite, '
    f'{ALLOWED}=True in the config'
)


def refuse_overwriting(cfg: Mapping[str, Any]) -> None:
    """A ValueError if the run of ``cfg`` would replace the file that it starts from, or files of another config.

    A run that resumes goes on with its own files. ``allow_overwrite=True`` in the config allows everything.
    """
    work_dir = cfg.get('work_dir')
    if work_dir is None or cfg.get('resume') or cfg.get(ALLOWED):
        return
    start = cfg.get('load_from')
    if start and '://' not in str(start):
        path = Path(start).expanduser().resolve()
        if path.parent == Path(work_dir).expanduser().resolve() and _WRITTEN.fullmatch(path.name):
            raise ValueError(
                f'work_dir {str(work_dir)!r} holds load_from, {path.name!r}, and the run saves there; {_REMEDY}'
            )
    other, own = _owner(Path(work_dir).expanduser()), config_name(cfg)
    if other is not None and own is not None and other != own:
        raise ValueError(
            f'work_dir {str(work_dir)!r} holds what {other} calibrated, and {own} would replace it; {_REMEDY}'
        )


def config_name(cfg: Mapping[str, Any]) -> str | None:
    """The file name of a config; None for one that was not read from a file."""
    name = getattr(cfg, 'filename', None)
    return None if name is None else Path(name).name


def _owner(work_dir: Path) -> str | None:
    """The config that wrote the calibration in a work folder, if there is one that says so."""
    try:
        return json.loads((work_dir / SUMMARY_FILE).read_bytes()).get('config')
    except (OSError, ValueError, AttributeError):  # none there, torn, or of an earlier version
        return None
