"""How the tools end: an error of the user's in one line and with status 2, with its traceback only when asked for."""

from __future__ import annotations

import argparse
import errno
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mixaq_mmdet.quantization import NotCalibratedError

STATUS = 2
_BUILDING = re.compile(r'^(class `\w+` in \S+\.py: )+')  # the host puts it in front when it builds a class
_RAISED_IN_A_WORKER = re.compile(r'^[\w.]+(Error|Exception): ')
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|std::bad_alloc|Cannot allocate memory|Unable to allocate")
_BYTES_WANTED = re.compile(r'tried to allocate (\d+) bytes')
_DISK_FULL = re.compile(r'No space left|PytorchStreamWriter failed writing|unexpected pos \d+')


class ToolError(SystemExit):
    """The end of a tool by an error of the user's: ``str()`` is the line that stands on stderr."""

    def __init__(self, line: str) -> None:
        super().__init__(STATUS)
        self.line = line

    def __str__(self) -> str:
        return self.line


def add_traceback_flag(parser: argparse.ArgumentParser) -> None:
    """``--traceback``, which every tool has."""
    parser.add_argument(
        '--traceback', action='store_true', help='show where an error was raised, not its message alone'
    )


@contextmanager
def one_line_errors(options: argparse.Namespace, kept: Callable[[], str | None] | None = None) -> Iterator[None]:
    """End the tool in one line where what is raised inside is the user's to mend; other errors keep their traceback.

    Args:
        options: of the command line; with ``--traceback`` everything is raised as it is.
        kept: what an interrupted run leaves for the next one, in words; None or nothing where it starts anew.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        line = describe(error, kept)
        if line is None or getattr(options, 'traceback', False):
            raise
        print(line, file=sys.stderr)
        raise ToolError(line) from error


def describe(error: BaseException, kept: Callable[[], str | None] | None = None) -> str | None:
    """The line for an error that its message explains; None for one that only its traceback does."""
    if isinstance(error, KeyboardInterrupt):
        left = kept() if kept is not None else None
        return f'interrupted; {left}' if left else 'interrupted'
    text = _message(error)
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        return f'error: {_wanted(text)}; free some memory, or use smaller images, a smaller batch or fewer workers'
    if _DISK_FULL.search(text) or getattr(error, 'errno', None) == errno.ENOSPC:
        return f'error: the disk is full ({text}); free some space and give the same command again'
    if isinstance(error, UnicodeError):
        return (
            f'error: a file name or text is not what the locale can hold ({text}); rename the file, or set '
            'LC_ALL=C.UTF-8 and give the same command again'
        )
    if isinstance(error, FileNotFoundError) and error.filename:
        return f'error: {error.filename!r} is not there; check data_root, ann_file and data_prefix in the config'
    unknown_type = isinstance(error, KeyError) and 'registry' in text
    if unknown_type or isinstance(error, (ValueError, NotCalibratedError, OSError)):
        return f'error: {text}'
    return None


def _wanted(text: str) -> str:
    """How much memory was asked for, where the error tells."""
    wanted = _BYTES_WANTED.search(text)
    more = f': {int(wanted[1]) / 2**20:.0f} MiB more were needed at once' if wanted else ''
    return f'there is not enough memory{more}'


def quoted(*words: object) -> str:
    """A command for users to paste, whatever blanks and signs the names in it hold."""
    return ' '.join(shlex.quote(str(word)) for word in words)


def _message(error: BaseException) -> str:
    """The message in one line; of an error that a worker process sent on, the line that names it."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()] or [type(error).__name__]
    if 'Traceback (most recent call last)' in text:
        return _RAISED_IN_A_WORKER.sub('', lines[-1])
    return _BUILDING.sub('', ' '.join(lines))
