"""What a calibration takes: minutes, forwards of blocks, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from mixaq_mmdet.models.two_branch_block import TwoBranchSwinBlock

EFFORT_FILE = 'calibration_effort.json'


@dataclass
class Effort:
    """Of one process.

    Attributes:
        minutes: by the clock.
        block_forwards: of the busiest block per image, in shares of all its windows.
        peak_memory: bytes of the process at its peak, start-up included; None where the system does not tell.
        blocks_taken_over: finished blocks of an interrupted run, whose effort is not in these numbers.
    """

    minutes: float = 0.0
    block_forwards: float = 0.0
    peak_memory: int | None = None
    blocks_taken_over: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f'{self.minutes:.1f} minutes, {self.block_forwards:.1f} forwards of a block per image'


@contextmanager
def measured(model: nn.Module, images: int) -> Iterator[Effort]:
    """Fill an :class:`Effort` while the context is open; ``images`` are those of this process."""
    effort, start = Effort(), time.perf_counter()
    windows_run: dict[nn.Module, float] = {}

    def count(block: nn.Module, inputs: tuple[Any, ...], _: Tensor) -> None:
        counts = inputs[1].counts
        windows_run[block] = windows_run.get(block, 0.0) + (counts.high + counts.low) / sum(counts)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, TwoBranchSwinBlock):
                stack.callback(module.register_forward_hook(count).remove)
        yield effort
    effort.minutes = (time.perf_counter() - start) / 60
    effort.block_forwards = max(windows_run.values(), default=0.0) / max(images, 1)
    effort.peak_memory = _peak_memory()


def _peak_memory() -> int | None:
    if sys.platform == 'win32':
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak
