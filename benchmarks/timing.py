"""How benchmarks measure: alternating rounds, ratios per round, memory above the start."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from evidence.source import source

from mixaq_mmdet.analysis import timing


def alternate(
    works: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str = 'cpu',
    clock: str = 'wall',
    least_seconds: float = 0.0,
    settle: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each round, by name; see ``mixaq_mmdet.analysis.timing.alternate``."""
    seconds = timing.alternate([*works.values()], rounds, clock, device, least_seconds, settle)
    return dict(zip(works, seconds, strict=True))


def ratios(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Median and range of each work's per-round ratio to ``reference``."""
    found = {}
    for name in seconds.keys() - {reference}:
        values = [a / b for a, b in zip(seconds[name], seconds[reference], strict=True)]
        found[name] = {'median': statistics.median(values), 'least': min(values), 'most': max(values)}
    return found


def peak_above_start(work: Callable[[], Any], device: str = 'cpu') -> int:
    """Bytes by which ``work`` raises memory at its peak: resident memory (Linux), or what torch holds on a GPU."""
    if device != 'cpu':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak of starting up
    before = _status_bytes('VmRSS')
    work()
    return _status_bytes('VmHWM') - before


def _status_bytes(field: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f'{field}:'))


def describe_device(device: str = 'cpu') -> dict[str, Any]:
    """What the figures depend on: the device, its load, the code."""
    return {
        'device': _processor() if device == 'cpu' else torch.cuda.get_device_name(device),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'load average': round(os.getloadavg()[0], 2),
        **source(),
    }


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return f'{names[0]}, {len(names)} logical cores' if names else platform.processor() or platform.machine()
