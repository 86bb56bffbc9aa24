"""Multiply-accumulates (MACs) and bit operations (BOPs) of a config's backbone; needs no checkpoint and runs nothing.

Bit operations are a count, not a speed. 'executed' is what stock Swin runs (FFN on real tokens), 'window layout' runs
the FFN on padded windows too. 'paper' counts MACs x 32 x activation bits, 'standard' MACs x weight x activation bits.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixaq_mmdet.analysis.bops import COLUMNS, LEVELS, backbone_bops, cost_rows, row_cells, totals
from mixaq_mmdet.analysis.model_config import build_backbone, input_shape
from mixaq_mmdet.analysis.study import check_result, facts, write_result
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.reporting.markdown import markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``analyze.py bops``."""
    parser.add_argument('config', help='config file; float and stock SwinTransformer configs count as 32 bit')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="input size in pixels (default: what the config's test pipeline usually makes)",
    )
    parser.add_argument('--level', choices=(*LEVELS, 'total'), default='block', help='how deep the table goes')
    parser.add_argument(
        '--out', type=Path, metavar='FILE.json', help='write all figures here, and a table beside (.md)'
    )
    command_line.add_config_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Print totals and a table."""
    cfg = command_line.load_config(options)
    if options.out:
        check_result(options.out, '--out')
    shape = input_shape(cfg, options.shape)
    backbone = build_backbone(cfg)
    cost = backbone_bops(backbone, shape)
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 120, highlight=False, soft_wrap=False)
    title = f'{type(backbone).__name__}, one image of {shape[0]} x {shape[1]}'
    rows = [] if options.level == 'total' else cost_rows(cost, options.level)
    console.print(title)
    if rows:
        console.print(rows_table(rows))
    for line in totals(cost):
        console.print(line, soft_wrap=True)
    if options.out:
        content = {
            'shape': list(shape),
            **cost.summary(),
            **{f'per_{level}': cost_rows(cost, level) for level in LEVELS},
            **facts(options),
        }
        lines = '\n'.join(f'- {line}' for line in totals(cost))
        table = markdown_table(COLUMNS, [row_cells(row) for row in rows]) if rows else ''
        write_result(options.out, content, f'# Bit operations\n\n{title}.\n\n{lines}\n\n{table}'.rstrip())


def rows_table(rows: list[dict[str, Any]]) -> Any:
    """A rich table of ``cost_rows``."""
    from rich.table import Table

    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify='left' if name == 'part' else 'right')
    for row in rows:
        table.add_row(*row_cells(row))
    return table
