"""What each tier of windows runs as on this machine: decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from .bf16_block import Bf16Block, TwoEngineBlock
from .kernel_maps import KernelMaps
from .layouts import BlockWeights
from .torch_block import TorchBlock

ENGINES = ('auto', 'kernels', 'torch')
HIGH_TIERS = ('int8', 'bf16')
BF16_FEATURES = frozenset({'avx512_bf16', 'amx_bf16'})


class TierPlan(NamedTuple):
    """How the tiers run.

    Attributes:
        engine: what runs integers: 'kernels' (AVX-512 VNNI, and AMX where there is) or 'torch' (portable).
        high: what high windows run as: 'int8' or 'bf16'.
        make_block: builds what runs a block.
        line: the decision in one line, with its reasons.
        maps: what works on whole maps with the kernels; None in plain torch.
    """

    engine: str
    high: str
    make_block: Callable[[BlockWeights], Any]
    line: str
    maps: KernelMaps | None = None


@lru_cache(maxsize=1)
def load_kernels() -> tuple[Any, str]:
    """(the kernels package and its handle, '') or (None, why they cannot run here)."""
    try:
        package = import_module('mixaq_mmdet.deploy.kernels')
    except ImportError as error:
        return None, f'the kernels cannot be imported: {error}'
    handle, reason = package.load()
    return (None, reason) if handle is None else ((package, handle), '')


@lru_cache(maxsize=1)
def has_bf16() -> bool:
    """Whether this CPU has bfloat16 products."""
    from .kernels.build import cpu_features

    return bool(BF16_FEATURES & cpu_features())


def plan_tiers(blocks: Sequence[BlockWeights], engine: str = 'auto', high: str = 'int8') -> TierPlan:
    """Decide what the high, low and pruned windows of these blocks run as, and say so.

    Low windows run as int8 on the grid they were simulated with, and so do high ones unless bf16 is asked for and this
    CPU has it. Bits that no CPU has (A4, A2) run as int8: same accuracy, same speed as eight. Pruned windows are
    skipped.

    Args:
        blocks: all blocks of the model.
        engine: 'auto', or what runs integers by name.
        high: 'int8', or 'bf16' for high windows whose activations are not quantized.

    Raises:
        ValueError: for unknown names, and for 'kernels' where they cannot run.
    """
    check_names(engine, high)
    loaded, reason = (None, 'engine="torch"') if engine == 'torch' else load_kernels()
    if loaded is not None:
        package, handle = loaded
        reason = next((why for block in blocks if (why := package.unsupported(block))), '')
    if engine == 'kernels' and reason:
        raise ValueError(f'engine="kernels" cannot run here: {reason}; use engine="auto"')
    if reason:
        how = f'exact integers in plain torch, because {reason}'
    else:
        how = f'int8 ({"AMX" if handle.on_matrices else "AVX-512 VNNI"} kernels)'
    make_integer = TorchBlock if reason else lambda weights: package.IntegerBlock(handle, weights)
    maps = None if reason else KernelMaps(package, handle)
    name = 'torch' if reason else 'kernels'
    if high == 'bf16' and has_bf16():
        line = f'high windows run as bf16, {_bits(blocks, "low")} as {how}; pruned windows are skipped'
        return TierPlan(name, 'bf16', lambda weights: _two_engines(weights, make_integer), line, maps)
    line = f'{_bits(blocks, "high")} and {_bits(blocks, "low")} run as {how}; pruned windows are skipped'
    line += '; high="bf16" is not followed: this CPU has no bf16 products' if high == 'bf16' else ''
    return TierPlan(name, 'int8', make_integer, line, maps)


def check_names(engine: str, high: str) -> None:
    """Raise a ValueError for a name that is none of ours."""
    for field, value, known in (('engine', engine, ENGINES), ('high', high, HIGH_TIERS)):
        if value not in known:
            raise ValueError(f'{field}={value!r} is unknown; use one of {list(known)}')


def _two_engines(weights: BlockWeights, make_integer: Callable[[BlockWeights], Any]) -> TwoEngineBlock:
    return TwoEngineBlock(Bf16Block(weights), make_integer(weights), weights.bias.shape[-1])


def _bits(blocks: Sequence[BlockWeights], branch: str) -> str:
    bits = sorted({block.grids[branch == 'low'].fc1_in.bits for block in blocks})
    return f'{branch} windows A{"/".join(map(str, bits))}'
