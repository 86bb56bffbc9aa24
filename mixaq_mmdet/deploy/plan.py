"""What each tier of windows runs as on this machine: decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from .backends import Backend, Runner, engines, pick
from .bf16_block import Bf16Block, TwoEngineBlock
from .layouts import BlockWeights

HIGH_TIERS = ('int8', 'bf16')
BF16_FEATURES = frozenset({'avx512_bf16', 'amx_bf16'})


@dataclass(frozen=True)
class Plan:
    """How a converted backbone runs. Its parts are made by ``backend``, blocks by :meth:`block`.

    Attributes:
        backend: the engine.
        high: what high windows run as: 'int8' or 'bf16'.
        line: the decision in one line, with its reasons.
    """

    backend: Backend
    high: str
    line: str

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return self.backend.name

    def block(self, weights: BlockWeights) -> Runner:
        """What runs a block."""
        integers = self.backend.block(weights)
        if self.high == 'int8':
            return integers
        return TwoEngineBlock(Bf16Block(weights), integers, weights.bias.shape[-1])


@lru_cache(maxsize=1)
def has_bf16() -> bool:
    """Whether this CPU has bfloat16 products."""
    from .kernels.build import cpu_features

    return bool(BF16_FEATURES & cpu_features())


def plan_blocks(blocks: Sequence[BlockWeights], engine: str = 'auto', high: str = 'int8') -> Plan:
    """Decide what the high, low and pruned windows of these blocks run as, and say so.

    Low windows run as int8 on the grid they were simulated with, and so do high ones unless bf16 is asked for and this
    CPU has it. Bits that no CPU has (A4, A2) run as int8: same accuracy, same speed as eight. Pruned windows are
    skipped.

    Args:
        blocks: all blocks of the model.
        engine: 'auto', or what runs integers by name.
        high: 'int8', or 'bf16' for high windows whose activations are not quantized.

    Raises:
        ValueError: for unknown names, and for an engine that cannot run them here.
    """
    check_names(engine, high)
    backend, reason = pick(engine, blocks)
    how = backend.describe(reason)
    if high == 'bf16' and has_bf16():
        line = f'high windows run as bf16, {_bits(blocks, "low")} as {how}; pruned windows are skipped'
        return Plan(backend, 'bf16', line)
    line = f'{_bits(blocks, "high")} and {_bits(blocks, "low")} run as {how}; pruned windows are skipped'
    line += '; high="bf16" is not followed: this CPU has no bf16 products' if high == 'bf16' else ''
    return Plan(backend, 'int8', line)


def check_names(engine: str, high: str) -> None:
    """Raise a ValueError for a name that is none of ours."""
    for field, value, known in (('engine', engine, engines()), ('high', high, HIGH_TIERS)):
        if value not in known:
            raise ValueError(f'{field}={value!r} is unknown; use one of {list(known)}')


def _bits(blocks: Sequence[BlockWeights], branch: str) -> str:
    bits = sorted({block.grids[branch == 'low'].fc1_in.bits for block in blocks})
    return f'{branch} windows A{"/".join(map(str, bits))}'
