"""The batches of an iteration-based loop that resumes: those it has had are counted off, not loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class ResumedBatches:
    """Stands in for an iteration-based loop's endless iterator; the first ``done`` batches come back as None.

    mmengine advances a resumed loop by loading every batch again, which takes long, and whose transforms draw random
    numbers just before the first new batch is made.

    Args:
        endless: mmengine's iterator over a loader without worker processes.
        done: batches that the loop has had.
        arrive: called before the first new batch is made.
    """

    def __init__(self, endless: Any, done: int, arrive: Callable[[], None]) -> None:
        self._endless = endless
        self._left = done
        self._arrive: Callable[[], None] | None = arrive

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._left:
            self._left -= 1
            self._count_off()
            return None
        if self._arrive is not None:
            self._arrive()
            self._arrive = None
        return next(self._endless)

    def skip_iter(self, number: int) -> None:
        """What onedl-mmengine's loop calls on its iterator to advance it; mmengine's takes batches."""
        for _ in range(number):
            next(self)

    def _count_off(self) -> None:
        if self._endless._iterator is None:  # onedl-mmengine makes it when the first batch is asked for
            self._endless._iterator = iter(self._endless._dataloader)
        try:
            self._endless._iterator._next_index()
        except StopIteration:  # a sampler that ends: as mmengine's iterator goes on to the next epoch
            loader = self._endless._dataloader
            self._endless._epoch += 1
            sampler = shuffler(loader)
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self._endless._epoch)
            self._endless._iterator = iter(loader)
            self._endless._iterator._next_index()


def shuffler(loader: Any) -> Any:
    """The sampler that shuffles: beside a batch sampler a DataLoader shows a sequential dummy."""
    if hasattr(loader.sampler, 'set_epoch'):
        return loader.sampler
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)
