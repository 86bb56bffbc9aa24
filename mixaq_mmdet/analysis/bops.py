"""Tables of what a backbone costs, from ``models/backbone_cost.py``'s count: per layer, per block and per stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixaq_mmdet.models.backbone_cost import FLOAT_BITS, backbone_bops, layer_bits, swin_spec
from mixaq_mmdet.windows.cost import Cost, Layer

__all__ = ['FLOAT_BITS', 'backbone_bops', 'cost_rows', 'layer_bits', 'swin_spec']

LEVELS = ('stage', 'block', 'layer')
GIGA = 1e9


def cost_rows(cost: Cost, level: str) -> list[dict[str, Any]]:
    """One row per stage, block or layer: MACs, bit operations (all in G) and relative cost."""
    names: dict[str, Callable[[Layer], object]] = {'stage': _stage, 'block': _block, 'layer': lambda layer: layer.name}
    if level not in names:
        raise ValueError(f'level={level!r} is unknown; use one of {list(LEVELS)}')
    total = cost.bit_operations('paper')
    rows = []
    for name, part in cost.group(names[level]).items():
        first = part.layers[0]
        tier = None if first.pair is None or level == 'stage' else cost.tiers[first.pair]
        rows.append(
            {
                'name': name,
                'windows': None if tier is None else list(tier),
                'macs': {count: part.macs(count) / GIGA for count in ('executed', 'window')},
                'bit_operations': {kind: part.bit_operations(kind) / GIGA for kind in ('paper', 'standard')},
                'share': part.bit_operations('paper') / total,
                'relative': part.relative('paper'),
            }
        )
    return rows


def _stage(layer: Layer) -> str:
    return 'patch embedding' if layer.stage < 0 else f'stage {layer.stage + 1}'


def _block(layer: Layer) -> str:
    if layer.stage < 0:
        return 'patch embedding'
    return f'stage {layer.stage + 1}, ' + ('merging' if layer.block is None else f'block {layer.block + 1}')
