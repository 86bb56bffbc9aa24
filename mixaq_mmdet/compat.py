"""Shims for the host stack (torch, mmengine, mmpretrain); ``python -m mixaq_mmdet.compat`` is the doctor.

Only the standard library at module level: the doctor must run where the rest is broken.
"""

from __future__ import annotations

import sys


def doctor_is_running() -> bool:
    """Whether the interpreter was started as ``python -m mixaq_mmdet.compat``."""
    argv = sys.orig_argv
    return any(flag == '-m' and name == 'mixaq_mmdet.compat' for flag, name in zip(argv, argv[1:], strict=False))


def prepare_host() -> None:
    """Make the installed host stack usable: safe globals for mmengine's files, the torchvision remedy."""
