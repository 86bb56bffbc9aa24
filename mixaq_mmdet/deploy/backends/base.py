"""What an engine offers, and how one is picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from mixaq_mmdet.registry import BACKENDS, lookup
from mixaq_mmdet.windows.assignment import Assignment, Run, TierCounts

from ..layouts import BlockWeights, Grid, Layer, LinearWeights

Size = tuple[int, int]
Embedding = Callable[[Tensor], tuple[Tensor, Size]]
Merging = Callable[[Tensor, Size], tuple[Tensor, Size]]
OutputMap = Callable[[Tensor, Size], Tensor]
LayerRunner = Callable[[Tensor], Tensor]
ModelPart = BlockWeights | Layer


class Runner(Protocol):
    """Runs the windows of a Swin block."""

    def run(self, stream: Tensor, run: Run) -> Any:
        """Work on the windows of ``run``, rows of a float32 stream (B * H * W, C), in place."""


class EmbedsBytes:
    """An embedding that takes ``ByteImages``, too."""


class WindowEngine(Protocol):
    """Ranks and chooses windows; the answers of ``mixaq_mmdet.windows`` for the importance L2."""

    def look(self, images: Tensor, patch: int) -> tuple[Tensor, bool]:
        """Where patches of images (B, C, H, W) have content, (B, H', W'), and whether all numbers are finite."""

    def rank(self, x: Tensor, content: Tensor, window: int, reverse: bool) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Scores, blank and order (B, windows) of both grids of a stream (B, H, W, C), by shift."""

    def assign(self, order: Tensor, counts: TierCounts, size: Size, window: int, shift: int) -> Assignment:
        """The assignment of ranked windows (B, windows), all kept ones in one run, in any order inside a branch."""


class Backend:
    """One engine. What it has no faster form of is None and runs in the part's own torch form, which is exact."""

    name: ClassVar[str]
    runs: ClassVar[tuple[type, ...]] = (BlockWeights,)
    """Kinds of parts that it has runners for: Swin blocks, layers outside them."""
    preference: ClassVar[int] = -1
    """Rank among what engine='auto' tries, highest first; below 0 it runs only if named."""
    layer_preference: ClassVar[int | None] = None
    """The same for layers outside Swin blocks, where it is another one."""
    gain: ClassVar[str] = ''
    """What a machine that lacks it would gain, with what it needs."""

    @classmethod
    def load(cls) -> tuple[Backend | None, str]:
        """(the engine, '') or (None, why it cannot run on this machine)."""
        return cls(), ''

    def describe(self, reason: str) -> str:
        """How it computes, for the plan's line; ``reason`` is why no other engine was taken."""
        return f'integers by {self.name}'

    def refuses(self, part: ModelPart) -> str:
        """Why it cannot run a part; '' if it can."""
        return ''

    def block(self, weights: BlockWeights) -> Runner:
        """What runs a Swin block."""
        raise NotImplementedError(f'engine {self.name!r} runs no Swin blocks')

    def layer(self, layer: Layer) -> LayerRunner:
        """What runs a linear layer or convolution, from uint8 codes to float32 or codes."""
        raise NotImplementedError(f'engine {self.name!r} runs no layers outside Swin blocks')

    def embedding(self, embed: Any, weights: LinearWeights, grid: Grid) -> Embedding | None:
        """The patch embedding with its norm, images (B, in_channels, H, W) to (B, H' * W', C) and (H', W')."""
        return None

    def merging(self, downsample: Any, weights: LinearWeights, grid: Grid) -> Merging | None:
        """A patch merging with its norm, (B, H * W, C) and (H, W) to (B, H' * W', N) and (H', W')."""
        return None

    def output(self, norm: nn.LayerNorm, grid: Grid | None = None) -> OutputMap | None:
        """An output norm, (B, H * W, C) and (H, W) to (B, C, H, W): floats, or uint8 codes channels last."""
        return None

    @property
    def windows(self) -> WindowEngine | None:
        """What ranks and chooses windows."""
        return None


def engines() -> list[str]:
    """The names that a config may give."""
    return ['auto', *sorted(BACKENDS.module_dict)]


def by_preference(part: type) -> list[type[Backend]]:
    """What engine='auto' tries for a kind of parts, in this order."""

    def preference(kind: type[Backend]) -> int:
        other = kind.layer_preference if part is Layer else None
        return kind.preference if other is None else other

    kinds = [kind for kind in BACKENDS.module_dict.values() if part in kind.runs and preference(kind) >= 0]
    return sorted(kinds, key=preference, reverse=True)


def pick(engine: str, parts: Sequence[ModelPart]) -> tuple[Backend, str]:
    """The engine that runs ``parts``, and why it is this one.

    Raises:
        ValueError: for an unknown name, and for a named engine that cannot run them here.
    """
    if engine != 'auto':
        backend, reason = _able(lookup(BACKENDS, engine, 'engine'), parts)
        if backend is None:
            raise ValueError(f'engine="{engine}" cannot run here: {reason}; use engine="auto"')
        return backend, f'engine="{engine}"'
    reasons: list[str] = []
    for kind in by_preference(type(parts[0]) if parts else BlockWeights):
        backend, reason = _able(kind, parts)
        if backend is not None:
            return backend, '; '.join(reasons)
        reasons.append(reason)
    raise ValueError(f'engine="auto": {"; ".join(reasons)}')


def _able(kind: type[Backend], parts: Sequence[ModelPart]) -> tuple[Backend | None, str]:
    other = next((part for part in parts if not isinstance(part, kind.runs)), None)
    if other is not None:
        return None, f'it runs no {"Swin blocks" if isinstance(other, BlockWeights) else "layers outside Swin blocks"}'
    backend, reason = kind.load()
    if backend is not None:
        reason = next((why for part in parts if (why := backend.refuses(part))), '')
    return (None, reason) if reason else (backend, '')
