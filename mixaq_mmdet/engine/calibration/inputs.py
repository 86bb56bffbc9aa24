"""Stored inputs of one block: in memory up to a limit, then on disk; replayed as often as a method asks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from mixaq_mmdet.models.steps import Stream
from mixaq_mmdet.quantization import Quantizer
from mixaq_mmdet.quantization.methods import Mix


class TensorStore:
    """A list of tensors; those that do not fit into ``limit`` bytes lie in a temporary folder."""

    def __init__(self, limit: int = 4 << 30) -> None:
        self._limit = limit
        self._used = 0
        self._places: list[Tensor | Path | None] = []
        self._folder: tempfile.TemporaryDirectory | None = None
        self._devices: dict[int, torch.device] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def spilled(self) -> int:
        """How many of the tensors lie on disk."""
        return sum(isinstance(place, Path) for place in self._places)

    def append(self, x: Tensor) -> None:
        """Add a tensor."""
        self._places.append(None)
        self[len(self) - 1] = x

    def __setitem__(self, index: int, x: Tensor) -> None:
        old = self._places[index]
        if isinstance(old, Tensor):
            self._used -= old.nbytes
        if self._used + x.nbytes <= self._limit:
            self._used += x.nbytes
            self._places[index] = x.detach()
        else:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix='calibration-')
            path = Path(self._folder.name) / f'{index}.pt'
            torch.save(x.detach().cpu().clone(), path)
            self._devices[index] = x.device
            self._places[index] = path

    def __getitem__(self, index: int) -> Tensor:
        place = self._places[index]
        if isinstance(place, Path):
            return torch.load(place, weights_only=True).to(self._devices[index])
        assert place is not None
        return place


class StreamStore:
    """Streams of a backbone, one for each image, whose ``x`` lies in a :class:`TensorStore`."""

    def __init__(self, limit: int) -> None:
        self._tensors = TensorStore(limit)
        self._streams: list[Stream] = []

    def __len__(self) -> int:
        return len(self._streams)

    def __getitem__(self, index: int) -> Stream:
        return self._streams[index]._replace(x=self._tensors[index])

    def __setitem__(self, index: int, stream: Stream) -> None:
        self._tensors[index] = stream.x
        self._streams[index] = stream._replace(x=stream.x.new_empty(0))

    def append(self, stream: Stream) -> None:
        """Add a stream."""
        self._tensors.append(stream.x)
        self._streams.append(stream._replace(x=stream.x.new_empty(0)))


class Replay:
    """The inputs of one block as a method sees them (``quantization.methods.BlockInputs``).

    Args:
        images: how many images there are on this rank.
        run: runs the block on the stored input of an image, or on a mixture with the float model's if it is given
            what mixes them; yields its output once per branch.
        tick: called after each image, for progress.
        store_limit: bytes that each :meth:`store` keeps in memory.
        gradients: of a loss of the whole model by outputs of the block, for an image; None where there are none.
        worked: which tokens of an image's output each branch works on.
    """

    def __init__(
        self,
        images: int,
        run: Callable[..., Iterable[Any]],
        tick: Callable[[], None],
        store_limit: int = 4 << 30,
        gradients: Callable[[int, Sequence[Tensor]], list[Tensor]] | None = None,
        worked: Callable[[int], list[Tensor | None]] = lambda index: [None],
    ) -> None:
        self._images = images
        self._run = run
        self._store_limit = store_limit
        self._gradients = gradients
        self.worked = worked
        self.tick = tick

    def __len__(self) -> int:
        return self._images

    def replay(self, block: nn.Module) -> None:
        """Run the block over all stored inputs."""
        for index in range(self._images):
            for _ in self._run(block, index):
                pass
            self.tick()

    def outputs(self, block: nn.Module, index: int, mix: Mix | None = None) -> list[Tensor]:
        """The block's output for one image, once per branch; of a tuple the first entry."""
        found = self._run(block, index) if mix is None else self._run(block, index, mix)
        return [out[0] if isinstance(out, tuple) else out for out in found]

    def output_gradients(self, index: int, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the loss by possible outputs of the block for one image, one for each."""
        if self._gradients is None:
            raise ValueError(
                'there are no output gradients here: only methods that say uses_gradients get them, and only for '
                'blocks of the backbone (the layers of a neck or a head are fitted together and have no one output)'
            )
        return self._gradients(index, outputs)

    def store(self) -> TensorStore:
        """A new, empty store."""
        return TensorStore(self._store_limit)

    def reduce(self, quantizers: Iterable[Quantizer]) -> None:
        """Merge statistics over ranks: exact, so that every rank fits the same quantizers as one rank would."""
        for quantizer in quantizers:
            if quantizer.observer is not None:
                for reduction, tensor in quantizer.observer.state():
                    all_reduce(tensor, op=reduction)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average over the ranks that have images, in place: all ranks take the same step."""
        if get_world_size() == 1:
            return
        ranks = torch.tensor(float(self._images > 0))
        all_reduce(ranks, op='sum')
        for tensor in tensors:
            all_reduce(tensor, op='sum')
            tensor /= ranks.to(tensor.device)
