"""Memory of maps that is used again: asking the system for 20 MB anew costs more than writing them."""

from __future__ import annotations

import threading
import weakref
from math import prod

import torch
from torch import Tensor


class Memory:
    """Hands out float32 tensors; what was handed out comes back by itself when nobody holds it any more.

    As many buffers are kept as were held at once, and they only grow: images of many sizes share them.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._lock = threading.Lock()

    def take(self, *shape: int) -> Tensor:
        """A tensor of this shape on the CPU, with any values."""
        count = prod(shape)
        with self._lock:
            buffer = self._pick(count)
        view = buffer.numpy()[:count].reshape(shape)
        # the tensor, and every view of it, keeps this array alive; its end is theirs
        weakref.finalize(view, self._free.append, buffer).atexit = False
        return torch.from_numpy(view)

    def _pick(self, count: int) -> Tensor:
        """The smallest free buffer that is large enough; else the largest is given up for a new one."""
        sizes = [buffer.numel() for buffer in self._free]  # others may append meanwhile, nobody else removes
        fitting = [index for index, size in enumerate(sizes) if size >= count]
        if fitting:
            return self._free.pop(min(fitting, key=sizes.__getitem__))
        if sizes:
            self._free.pop(max(range(len(sizes)), key=sizes.__getitem__))
        return torch.empty(count)


MAPS = Memory()
