"""Progress of long work: a bar on rank 0 at a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.dist import is_main_process
from mmengine.utils import ProgressBar
from torch import nn
from torch.utils.data import DataLoader


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Open a bar of ``total`` steps; it gives a ``tick(steps=1)`` to call after they are done."""
    if not (total and is_main_process() and sys.stdout.isatty()):
        yield lambda steps=1: None
        return
    sys.stdout.write(f'{what}\n')
    bar = ProgressBar(total, file=sys.stdout)
    try:
        yield bar.update
    finally:
        sys.stdout.write('\n')


def watched(what: str, items: Sequence[Any] | DataLoader) -> Iterator[Any]:
    """The items one by one, a step of a bar each."""
    with progress(what, len(items)) as tick:
        for item in items:
            yield item
            tick()


@contextmanager
def counted_images(what: str, backbone: nn.Module, total: int) -> Iterator[None]:
    """A bar of ``total`` images, a step for each that goes through the backbone: for loops that others run."""
    with progress(what, total) as tick:
        handle = backbone.register_forward_hook(lambda module, inputs, output: tick(len(inputs[0])))
        try:
            yield
        finally:
            handle.remove()
