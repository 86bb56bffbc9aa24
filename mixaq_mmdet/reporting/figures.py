"""Figures: one palette, one way onto the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import whole_file

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#F0E442')
"""Okabe and Ito's palette: told apart by every kind of colour vision."""
HIGH_COLOUR, LOW_COLOUR = COLOURS[0], COLOURS[4]
MARKERS = 'osv^Dx'
DPI = 110


def save_figure(path: str | Path, draw: Callable[[Any], None], dpi: int = DPI, **options: Any) -> Path:
    """Draw on a fresh figure (no display is needed) and write it; ``options`` are matplotlib's, of the figure."""
    from matplotlib.figure import Figure

    path = Path(path)
    figure = Figure(**options)
    draw(figure)
    with whole_file(path) as temporary:
        kind = path.suffix.lstrip('.')
        metadata = {'Software': None} if kind == 'png' else None  # the same bytes from every version of matplotlib
        figure.savefig(temporary, dpi=dpi, format=kind, facecolor='white', metadata=metadata)
    return path
