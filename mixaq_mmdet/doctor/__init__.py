"""The doctor: what of the host stack is here, what works, and what to do about the rest.

Run it as ``python -m mixaq_mmdet.compat``. Only the standard library, and nothing of the stack is imported into the
doctor's own process, so that it works where the stack is broken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

COMMAND = 'python -m mixaq_mmdet.compat'

__all__ = ['COMMAND', 'doctor_is_running', 'main']


def doctor_is_running(command_line: Sequence[str] | None = None) -> bool:
    """Whether the interpreter was started as ``python [options] -m mixaq_mmdet.compat``.

    While ``-m`` imports the parent package ``sys.argv`` is not set yet, so the original command line is read.
    """
    arguments = iter((sys.orig_argv if command_line is None else command_line)[1:])
    for argument in arguments:
        if not argument.startswith('-') or argument == '-':
            return False
        if argument.startswith('--'):
            if argument == '--check-hash-based-pycs':
                next(arguments, None)
            continue
        # A cluster of one-letter flags: -c, -m, -W and -X take the rest of the word or the next word.
        for position, letter in enumerate(argument[1:], start=2):
            if letter in 'cmWX':
                value = argument[position:] or next(arguments, '')
                if letter in 'cm':
                    return letter == 'm' and value == 'mixaq_mmdet.compat'
                break
    return False


def main() -> int:
    """Print the table; 0 when detection can run, 1 when it cannot."""
    from .report import run

    return run()
