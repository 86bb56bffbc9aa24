"""Files that users bring or a crash left behind: a damaged one is a ValueError that names it and what to do."""

from __future__ import annotations

import ast
import json
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

TORN = (RuntimeError, EOFError, KeyError, ValueError, OSError, AttributeError, TypeError, pickle.UnpicklingError)
"""What ``torch.load`` raises on files that are truncated, empty, or something else altogether."""
_HOST_ERRORS = (ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError)
_DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def check_readable(path: str | Path, field: str) -> None:
    """A ValueError unless ``path`` is a checkpoint that ``torch.load`` takes; large files are mapped, not read."""
    path = Path(path).expanduser()
    try:
        with path.open('rb') as file:
            mapped = file.read(2) == b'PK'
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
    except TORN as error:
        if 'Unsupported global' in str(error) or 'Unsupported class' in str(error):
            if torch.__version__ < '2.6':  # there the host loads such files
                return
            raise ValueError(
                f'{field} {str(path)!r} holds more than weights, which is not loaded for safety; make a plain file of '
                'it with tools/convert_checkpoint.py'
            ) from error
        raise ValueError(
            f'{field} {str(path)!r} is truncated or not a PyTorch checkpoint; copy or download it again, or take an '
            'earlier one'
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f'{field} {str(path)!r} holds a {type(content).__name__}; a dict of weights is needed')


def read_config(path: str | Path, field: str = 'config', edits: Mapping[str, Any] | None = None) -> Config:
    """The config of a detector, with ``--cfg-options``; a file that is none is a ValueError."""
    if not Path(path).is_file():
        raise ValueError(f'{field} {str(path)!r} is not a file; relative paths start at {Path.cwd()}')
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        place = _place_of(error, Path(path))
        raise ValueError(f'{field} {str(path)!r}, {place}: {error.msg}: {(error.text or "").strip()}') from error
    except OSError as error:  # a base that is missing, or an ending that is none of a config
        raise ValueError(f'{field} {str(path)!r} cannot be read: {error}') from error
    if edits:
        cfg.merge_from_dict(edits)
    if not cfg.get('model'):
        raise ValueError(f'{field} {str(path)!r} has no model; give the config of a detector')
    return cfg


def _place_of(error: SyntaxError, path: Path) -> str:
    """Where an error is: mmengine parses texts, so that the error of a config names no file."""
    if Path(error.filename or '').is_file():  # a module of its custom_imports
        return f'{error.filename}, line {error.lineno}'
    try:
        ast.parse(path.read_bytes())
    except SyntaxError:
        return f'line {error.lineno}'
    return f'line {error.lineno} of a file in its _base_'


def check_work_dir(path: str | Path, field: str = '--work-dir') -> None:
    """A ValueError unless files can be written below ``path``, which is made."""
    _check_folder(path, f'{field} {str(path)!r}')


def check_output(path: str | Path, field: str) -> None:
    """A ValueError unless ``path`` can be written as a file; its folder is made."""
    if Path(path).is_dir():
        raise ValueError(f'{field}={str(path)!r} is a folder; give the file to write')
    _check_folder(Path(path).parent, f'{field}={str(path)!r}')


def _check_folder(path: str | Path, shown: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f'{shown} cannot be written ({error.strerror}); give another one') from error


def read_json(path: str | Path, remedy: str) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f'{str(path)!r} is torn or not JSON ({error}); {remedy}') from error


@contextmanager
def naming_annotations(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Inside, an error that a broken annotation file explains becomes a ValueError that names the file.

    The host tells a line and a column, but not of which file. Files are looked at only once something has failed.
    """
    try:
        yield
    except _HOST_ERRORS as error:
        for name in _DATALOADERS:
            for path in _annotation_files((cfg.get(name) or {}).get('dataset')):
                if reason := _what_is_wrong(path):
                    raise ValueError(f'{name}.dataset.ann_file {str(path)!r} {reason}') from error
        raise


def _annotation_files(dataset: Any) -> Iterator[Path]:
    if not isinstance(dataset, Mapping):
        return
    for inner in [dataset.get('dataset'), *(dataset.get('datasets') or [])]:
        yield from _annotation_files(inner)
    if dataset.get('ann_file'):
        yield Path(dataset.get('data_root') or '') / dataset['ann_file']


def _what_is_wrong(path: Path) -> str | None:
    if path.suffix != '.json' or not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        return f'is torn or not JSON: {error}; write or copy it again'
    keys = ('images', 'annotations', 'categories')
    missing = [key for key in keys if not isinstance(content, Mapping) or not isinstance(content.get(key), list)]
    if missing:
        return f'is no COCO annotation file, it lacks the lists {missing}'
    if not content['images']:
        return 'holds no image'
    known = {image.get('id') for image in content['images'] if isinstance(image, Mapping)}
    if any(not isinstance(note, Mapping) or note.get('image_id') not in known for note in content['annotations']):
        return 'has annotations of images that it does not hold'
    return None
