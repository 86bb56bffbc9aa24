"""Growth of a backbone's time with image size, batch and share of pruned windows, as a picture of ratios to stock."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STOCK = 'stock mmdet float'


def pixels(size: str) -> int:
    """Of 'HxW'."""
    height, width = (int(side) for side in size.split('x'))
    return height * width


def pruned_share(name: str) -> float | None:
    """The share of pruned windows that one of our rivals' names tells; None for the others."""
    if not name.startswith('ours W8A8'):
        return None
    found = re.search(r'(\d+) % pruned', name)
    return int(found[1]) / 100 if found else 0.5 * name.endswith('half pruned')


def plot_growth(cases: Sequence[dict[str, Any]], path: Path) -> None:
    """Left: seconds per image over pixels, a line for each backbone and batch. Right: pruning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout='constrained')
    by_size, by_share = figure.subplots(1, 2)
    lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for case in cases:
        for name, seconds in case['seconds'].items():
            per_image = statistics.median(seconds) / case['batch']
            lines.setdefault((name, case['batch']), []).append((pixels(case['size']), per_image))
    for (name, batch), points in lines.items():
        if not (pruned_share(name) or name.startswith('ours bf16')):
            style = '-' if batch == 1 else '--'
            by_size.plot(*zip(*sorted(points), strict=True), style, marker='o', ms=3, label=f'{name}, batch {batch}')
    by_size.set(xlabel='pixels', ylabel='seconds per image', title='size and batch')
    by_size.legend(frameon=False, fontsize=6)
    for case in cases:
        shares = {share: name for name in case['seconds'] if (share := pruned_share(name)) is not None}
        if 0.0 in shares:
            whole = statistics.median(case['seconds'][shares[0.0]])
            points = sorted((share, statistics.median(case['seconds'][name]) / whole) for share, name in shares.items())
            label = f'{case["size"]}, batch {case["batch"]}'
            by_share.plot(*zip(*points, strict=True), marker='o', ms=3, label=label)
    by_share.set(xlabel='share of windows pruned', ylabel='time of all-high', ylim=(0, None), title='pruning')
    by_share.legend(frameon=False, fontsize=6)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.png')
    figure.savefig(temporary, dpi=150)
    os.replace(temporary, path)
