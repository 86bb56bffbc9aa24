"""Timing works against each other: in rounds, each in an order of its own, so that a disturbance hits all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

CLOCKS = ('wall', 'cpu')
Device = torch.device | str


def alternate(
    works: Sequence[Callable[[], Any]],
    rounds: int,
    clock: str = 'wall',
    device: Device = 'cpu',
    least_seconds: float = 0.0,
    settle: float = 0.0,
) -> list[list[float]]:
    """Seconds of every work in each round, after one untimed round.

    Each round has an order of its own: what a work finds in caches and memory depends on the one before it.

    Args:
        works: what is timed.
        rounds: timed rounds, at least.
        clock: 'wall', or 'cpu' for processor time, the better clock on a machine that others use too.
        device: where they run; a GPU is waited for.
        least_seconds: go on until the timed rounds took so long together: a short work needs more of them.
        settle: seconds to wait before each work, in which the threads of another library stop to spin.
    """
    if clock not in CLOCKS:
        raise ValueError(f'clock={clock!r} is unknown; use one of {list(CLOCKS)}')
    seconds: list[list[float]] = [[] for _ in works]
    places, shuffler, number = list(range(len(works))), random.Random(0), 0
    while number <= rounds or sum(map(sum, seconds)) < least_seconds:
        shuffler.shuffle(places)
        for place in places:
            time.sleep(settle)
            taken = timed(works[place], clock, device)
            if number:
                seconds[place].append(taken)
        number += 1
    return seconds


def timed(work: Callable[[], Any], clock: str = 'wall', device: Device = 'cpu') -> float:
    """Seconds that one call takes; see :func:`alternate`."""
    begin = now(clock, device)
    work()
    return now(clock, device) - begin


def now(clock: str, device: Device) -> float:
    """Seconds of a clock, once the device has done what it was told."""
    if torch.device(device).type != 'cpu':
        torch.cuda.synchronize(device)
    return time.process_time() if clock == 'cpu' else time.perf_counter()
