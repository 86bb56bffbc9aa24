"""What pages draw alike: intervals beside each other, AP over cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

MARKERS = 'osv^Dx*'
TITLE = 'box AP on val, 95 % interval over images'

Summary = Mapping[str, Any]


def whiskers(found: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Distances of the ends of intervals from their estimates, as matplotlib takes them."""
    return [[one['estimate'] - one['low'] for one in found], [one['high'] - one['estimate'] for one in found]]


def beside(axes: Any, at: Sequence[float], found: Sequence[Mapping[str, float]], **style: Any) -> None:
    """Intervals along the horizontal axis, one at each height."""
    estimates = [one['estimate'] for one in found]
    axes.errorbar(estimates, at, xerr=whiskers(found), **{'fmt': 'o', 'ms': 5, 'capsize': 3, **style})


def upright(axes: Any, at: Sequence[float], found: Sequence[Mapping[str, float]], **style: Any) -> None:
    """Intervals along the vertical axis, one at each place."""
    estimates = [one['estimate'] for one in found]
    axes.errorbar(at, estimates, yerr=whiskers(found), **{'fmt': 'o-', 'ms': 5, 'capsize': 3, **style})


def models_beside(
    axes: Any,
    rows: Sequence[Summary],
    colour: Callable[[Summary], str],
    label: Callable[[Summary], str] = lambda row: row['name'],
) -> None:
    """Box AP of the models of a table that were run, from top to bottom."""
    for place, row in enumerate(rows):
        beside(axes, [place], [row['result']['box']], color=colour(row))
    axes.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=7 if len(rows) > 18 else None)
    axes.invert_yaxis()
    axes.set(title=TITLE, xlabel='box AP')


def legend(axes: Any, **options: Any) -> None:
    """Where there is something to tell apart."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**{'fontsize': 8, **options})
