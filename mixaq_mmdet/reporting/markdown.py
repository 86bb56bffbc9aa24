"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_NO_NUMBER = ('', '-', 'not run')
"""What stands in a column of numbers where there is none."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose columns of numbers are right-aligned; floats with two decimals, None as a dash."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[column]) for row in cells) for column in range(len(header))]
    rule = ['---:' if right else '---' for right in numeric]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [[_cell(name) for name in header], rule, *cells])


def _cell(value: Any) -> str:
    if value is None:
        return '-'
    return f'{value:.2f}' if isinstance(value, float) else str(value).replace('|', '\\|')


def _is_number(text: str) -> bool:
    if text in _NO_NUMBER:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
