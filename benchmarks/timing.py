"""How benchmarks measure: alternating rounds, ratios per round, memory above the start."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def alternate(
    works: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str = 'cpu',
    clock: str = 'wall',
    least_seconds: float = 0.0,
) -> dict[str, list[float]]:
    """Time every work once per round, after one untimed round; what disturbs a round disturbs all works alike.

    On a machine that others use too, the processor time of one thread is the better clock.

    Args:
        works: by name.
        rounds: timed rounds, at least.
        device: where they run; a GPU is waited for.
        clock: 'wall', or 'cpu' for processor time.
        least_seconds: go on until the timed rounds took so long together: a short work needs more of them.

    Returns:
        Seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    passed = 0.0
    while rounds > 0 or passed < least_seconds:
        for name, work in works.items():
            seconds[name].append(timed(work, device, clock))
            passed += seconds[name][-1]
        rounds -= 1
    return seconds


def timed(work: Callable[[], Any], device: str = 'cpu', clock: str = 'wall') -> float:
    """Seconds that one call takes; see :func:`alternate`."""
    start = _now(device, clock)
    work()
    return _now(device, clock) - start


def _now(device: str, clock: str) -> float:
    if device != 'cpu':
        torch.cuda.synchronize(device)
    return time.process_time() if clock == 'cpu' else time.perf_counter()


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
    """What the figures depend on besides the code."""
    return {
        'device': _processor() if device == 'cpu' else torch.cuda.get_device_name(device),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'load average': round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return f'{names[0]}, {len(names)} logical cores' if names else platform.processor() or platform.machine()
