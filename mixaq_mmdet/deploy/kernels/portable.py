"""The kernels that any CPU with a C++ compiler runs: parts of a detector around its products.

They are a library of their own. Its sources name no instruction set, and it is built for the CPU that runs it.
"""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from pathlib import Path

from .build import SOURCES, Library, attempt, built, cpu_features
from .entries import PORTABLE_ENTRIES
from .structures import PORTABLE_MIRRORED

PORTABLE_SOURCES = SOURCES / 'portable'
# no fused multiply-add: samples are placed, and boxes compared, after the same roundings as mmcv's
FLAGS = ('-std=c++17', '-O3', '-fPIC', '-shared', '-pthread', '-ffp-contract=off')
FOR_THIS_CPU = '-march=native'


class PortableKernels(Library):
    """The portable kernels."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, PORTABLE_ENTRIES, PORTABLE_MIRRORED)


@lru_cache(maxsize=1)
def load_portable() -> tuple[PortableKernels | None, str]:
    """The kernels and a line that tells where they come from, or None and why there are none."""
    return attempt(lambda compiler: PortableKernels(_build(compiler)), 'portable kernels')


def _build(compiler: str) -> Path:
    # machines share homes: another CPU must not find this file
    cpu = ' '.join([platform.machine(), *sorted(cpu_features())])
    try:
        return built(compiler, [*FLAGS, FOR_THIS_CPU], PORTABLE_SOURCES, cpu)
    except subprocess.CalledProcessError:  # not every compiler knows the CPU that it runs on
        return built(compiler, [*FLAGS], PORTABLE_SOURCES, cpu)
