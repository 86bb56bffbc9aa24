"""Result files: written once, atomically, never recomputed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing the package imports mmdet, which takes longer than most of what is done here
    from mixaq_mmdet.engine.matches import Matches


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    with open(temporary, 'w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """``write_text`` of JSON that people can read and git can compare."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + '\n')


class Store:
    """``<root>/runs/<hash>.json`` with ``<hash>.npz`` beside it; the JSON appears last and is the commit."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.runs = self.root / 'runs'

    def path(self, key: str) -> Path:
        """Where the result of a hash lies or will lie."""
        return self.runs / f'{key}.json'

    def has(self, key: str) -> bool:
        """Whether the experiment is finished."""
        return self.path(key).is_file()

    def read(self, key: str) -> dict[str, Any]:
        """The result; a damaged file is an error that names it."""
        try:
            return json.loads(self.path(key).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f'{self.path(key)} is damaged ({error}); restore it from git or delete it') from error

    def matches(self, key: str) -> dict[str, Matches]:
        """Per-image matches of a result, by 'bbox' and 'segm'."""
        from mixaq_mmdet.engine.matches import load_matches

        path = self.path(key).with_suffix('.npz')
        if not path.is_file():
            raise ValueError(
                f'{path} is missing; restore it from git, or delete {key}.json and run the experiment again'
            )
        return load_matches(path)

    def write(self, key: str, result: Mapping[str, Any], matches: Mapping[str, Matches] | None = None) -> bool:
        """Commit a result; False (and nothing written) where there is one already."""
        if self.has(key):
            return False
        self.runs.mkdir(parents=True, exist_ok=True)
        if matches:
            from mixaq_mmdet.engine.matches import save_matches

            save_matches(self.path(key).with_suffix('.npz'), matches)
        write_json(self.path(key), result)
        return True
