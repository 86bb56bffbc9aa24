"""Images that are missing or damaged: a ValueError that names the file, however the host found out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

_HOST_ERRORS = (OSError, AssertionError, AttributeError, TypeError, cv2.error)
"""What reading an image ends in; a worker process sends it on without the file's name."""


def check_image_file(path: str | Path, field: str) -> None:
    """A ValueError unless ``path`` is an image."""
    if not Path(path).is_file():
        raise ValueError(f'{field} {str(path)!r} is not a file; relative paths start at {Path.cwd()}')
    if cv2.imread(str(path)) is None:
        raise ValueError(f'{field} {str(path)!r} is damaged or not an image; copy it again or give another one')


@contextmanager
def naming_images(dataset: Any) -> Iterator[None]:
    """Inside, an error that an image of ``dataset`` explains becomes a ValueError that names it.

    Images are looked at only once something has failed.
    """
    try:
        yield
    except _HOST_ERRORS:
        for index in range(len(dataset)):
            path = dataset.get_data_info(index).get('img_path')
            if path is not None and '://' not in str(path):
                check_image_file(path, 'image')
        raise
