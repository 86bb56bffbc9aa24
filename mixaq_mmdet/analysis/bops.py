"""Tables of what a backbone costs, from ``models/backbone_cost.py``'s count: per layer, per block and per stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mixaq_mmdet.checks import check_list, check_positive
from mixaq_mmdet.models.backbone_cost import FLOAT_BITS, backbone_bops, layer_bits, swin_spec
from mixaq_mmdet.models.quantize import swin_backbone
from mixaq_mmdet.reporting.markdown import markdown_table
from mixaq_mmdet.windows.cost import Cost, Layer

__all__ = ['FLOAT_BITS', 'backbone_bops', 'cost_rows', 'layer_bits', 'swin_spec']

LEVELS = ('stage', 'block', 'layer')
GIGA = 1e9
COLUMNS = ('part', 'windows h/l/p', 'MACs G', 'window G', 'BOPs G paper', 'BOPs G standard', 'share', 'relative')


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


def totals(cost: Cost) -> list[str]:
    """The lines under the table."""
    low, prune = cost.realised
    relative = cost.relative('paper')
    macs = f'{cost.macs("executed") / GIGA:.2f} G executed, {cost.macs("window") / GIGA:.2f} G window layout'
    paper, standard = (cost.bit_operations(kind) / GIGA for kind in ('paper', 'standard'))
    return [
        f'MACs: {macs}',
        f'bit operations: {paper:.2f} G paper (MACs x 32 x b_a), {standard:.2f} G standard (MACs x b_w x b_a)',
        f'mean activation bits: {cost.mean_activation_bits():.2f}',
        f'realised low ratios: {ratios_text(low)}',
        f'realised prune ratios: {ratios_text(prune)}',
        f'relative cost: {relative:.3f} of all windows high ({1 / relative:.2f}x fewer bit operations; standard count '
        f'{cost.relative("standard"):.3f})'
        if relative
        else 'relative cost: 0',
    ]


def ratios_text(ratios: tuple[float, ...]) -> str:
    """Ratios in a list, or 'none'."""
    return '[' + ', '.join(f'{ratio:.3g}' for ratio in ratios) + ']' if any(ratios) else 'none'


def row_cells(row: dict[str, Any]) -> list[str]:
    """The texts of a row of ``cost_rows``, one for each of ``COLUMNS``."""
    return [
        str(row['name']),
        '/'.join(str(number) for number in row['windows']) if row['windows'] else '',
        f'{row["macs"]["executed"]:.2f}',
        f'{row["macs"]["window"]:.2f}',
        f'{row["bit_operations"]["paper"]:.2f}',
        f'{row["bit_operations"]["standard"]:.2f}',
        f'{100 * row["share"]:.1f} %',
        f'{row["relative"]:.3f}',
    ]


@dataclass(frozen=True)
class CostTable:
    """What one image costs; printing it shows a table."""

    title: str
    cost: Cost
    level: str = 'block'

    def __str__(self) -> str:
        rows = [row_cells(row) for row in cost_rows(self.cost, self.level)]
        return '\n'.join([self.title, '', markdown_table(COLUMNS, rows), '', *totals(self.cost)])

    __repr__ = __str__


def cost_table(model: Any, shape: tuple[int, int], level: str = 'block') -> CostTable:
    """The table of a detector's Swin backbone, or of a bare one, for one image of ``shape`` = (height, width)."""
    backbone = swin_backbone(model)
    sides = check_list(shape, 'shape', '(800, 1216)')
    if len(sides) != 2:
        raise ValueError(f'shape={shape!r} must be (height, width) in pixels')
    height, width = (check_positive(side, 'shape', 800) for side in sides)
    if level not in LEVELS:
        raise ValueError(f'level={level!r} is unknown; use one of {list(LEVELS)}')
    title = f'{type(backbone).__name__}, one image of {height} x {width}'
    return CostTable(title, backbone_bops(backbone, (height, width)), level)


def _stage(layer: Layer) -> str:
    return 'patch embedding' if layer.stage < 0 else f'stage {layer.stage + 1}'


def _block(layer: Layer) -> str:
    if layer.stage < 0:
        return 'patch embedding'
    return f'stage {layer.stage + 1}, ' + ('merging' if layer.block is None else f'block {layer.block + 1}')
