"""Run files that no page reads: what an experiment left behind that was changed or dropped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .page import Page
from .reader import Reader


def orphans(pages: Iterable[Page], reader: Reader) -> list[Path]:
    """Results that the pages do not read, and matches of results of which they read the rest alone."""
    for page in pages:
        page.summarise(reader)
    return sorted(path for path in reader.store.runs.iterdir() if path.stem not in _read(reader, path))


def _read(reader: Reader, path: Path) -> set[str]:
    return reader.read_matches if path.suffix == '.npz' else reader.read
