"""Where a result was made: versions, device, threads. No names of machines or people, no dates."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from mixaq_mmdet.doctor.stacks import ONEDL, installed

PACKAGES = ('mixaq_mmdet', 'torch', 'mmcv', 'mmengine', 'mmdet', 'numpy', 'pycocotools', 'opencv-python')


def versions() -> dict[str, str]:
    """Versions of what a result depends on; torch's with its build (``+cpu``, ``+cu130``), which pip's may lack.

    Where a fork stands in for an mm package, its name precedes its version.
    """
    import torch

    found = {'python': platform.python_version()}
    for name in PACKAGES:
        fork = ONEDL.distributions.get(name, name)
        here = installed([name, fork])
        found[name] = here.get(name) or (f'{fork} {here[fork]}' if fork in here else 'missing')
    return {**found, 'torch': torch.__version__}


def device(used: str | None = None) -> dict[str, Any]:
    """The processor by its model, cores and threads; the accelerator where there is one.

    Args:
        used: type of the torch device that the work ran on; for 'cpu' an idle accelerator is left out.
    """
    import torch

    found: dict[str, Any] = {
        'processor': _processor(),
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'threads': torch.get_num_threads(),
    }
    if torch.cuda.is_available() and used != 'cpu':
        found['accelerator'] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return named[0] if named else platform.processor() or platform.machine()
