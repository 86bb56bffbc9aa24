"""What each tier of windows runs as on this machine: decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

from .kernel_maps import KernelMaps
from .layouts import BlockWeights
from .torch_block import TorchBlock

ENGINES = ('auto', 'kernels', 'torch')


class TierPlan(NamedTuple):
    """How the tiers run.

    Attributes:
        engine: 'kernels' (AVX-512 VNNI) or 'torch' (portable).
        make_block: builds what runs a block.
        line: the decision in one line, with its reason.
        maps: what works on whole maps with the kernels; None in plain torch.
    """

    engine: str
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


def plan_tiers(blocks: Sequence[BlockWeights], engine: str = 'auto') -> TierPlan:
    """Decide what the high, low and pruned windows of these blocks run as.

    Bits that the hardware lacks (A4, A2) run as int8 on the grid they were simulated with: same accuracy, same speed.

    Args:
        blocks: all blocks of the model.
        engine: 'auto', or one of the two by name.

    Raises:
        ValueError: for an unknown engine, and for 'kernels' where they cannot run.
    """
    if engine not in ENGINES:
        raise ValueError(f'engine={engine!r} is unknown; use one of {list(ENGINES)}')
    loaded, reason = (None, 'engine="torch"') if engine == 'torch' else load_kernels()
    if loaded is not None:
        package, handle = loaded
        sizes = {(b.proj.codes.shape[0], b.num_heads, b.bias.shape[-1]) for b in blocks}
        reasons = [why for size in sorted(sizes) if (why := package.unsupported(*size))]
        if not reasons:
            tiers = _describe(blocks, 'int8 (AVX-512 VNNI kernels)')
            maps = KernelMaps(package, handle)
            return TierPlan('kernels', lambda weights: package.IntegerBlock(handle, weights), tiers, maps)
        reason = reasons[0]
    if engine == 'kernels':
        raise ValueError(f'engine="kernels" cannot run here: {reason}; use engine="auto"')
    tiers = _describe(blocks, 'exact integers in plain torch')
    return TierPlan('torch', TorchBlock, f'{tiers}, because {reason}')


def _describe(blocks: Sequence[BlockWeights], how: str) -> str:
    tiers = []
    for name, branch in (('high', 0), ('low', 1)):
        bits = sorted({block.grids[branch].fc1_in.bits for block in blocks})
        tiers.append(f'{name} windows A{"/".join(map(str, bits))}')
    return f'{" and ".join(tiers)} run as {how}; pruned windows are skipped'
