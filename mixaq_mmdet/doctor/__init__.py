"""The doctor: what of the host stack is here, what works, and what to do about the rest.

Run it as ``python -m mixaq_mmdet.compat``. Only the standard library, and nothing of the stack is imported into the
doctor's own process, so that it works where the stack is broken.
"""

from __future__ import annotations

import sys

MODULE = 'mixaq_mmdet.compat'
COMMAND = f'python -m {MODULE}'

__all__ = ['COMMAND', 'doctor_is_running', 'main']


def doctor_is_running() -> bool:
    """Whether Python is on its way to ``-m mixaq_mmdet.compat``.

    While it looks for the module of ``-m``, and imports its parent package for that, ``sys.argv`` begins with '-m'.
    """
    return sys.argv[:1] == ['-m'] and any(word.endswith(MODULE) for word in sys.orig_argv)


def main() -> int:
    """Print the table; 0 when detection can run, 1 when it cannot."""
    from .report import run

    return run()
