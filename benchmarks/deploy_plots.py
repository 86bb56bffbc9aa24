"""Pictures of measured times: how a backbone's grows with its work, and what a whole detector's is made of."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixaq_mmdet.reporting.figures import save_figure

STOCK = 'stock mmdet float'


def pixels(size: str) -> int:
    """Of 'HxW'."""
    height, width = (int(side) for side in size.split('x'))
    return height * width


def pruned_share(name: str) -> float | None:
    """The share of pruned windows that one of our rivals' names tells; None for the others."""
    found = re.fullmatch(r'ours W8A8(?:, (half|\d+ %) pruned)?', name)
    if found is None:
        return None
    share = found[1] or '0 %'
    return 0.5 if share == 'half' else int(share.removesuffix(' %')) / 100


def plot_growth(cases: Sequence[dict[str, Any]], path: Path) -> None:
    """Left: seconds per image over pixels, a line for each backbone and batch. Right: pruning."""

    def draw(figure: Any) -> None:
        by_size, by_share = figure.subplots(1, 2)
        _draw_sizes(cases, by_size)
        _draw_shares(cases, by_share)

    save_figure(path, draw, dpi=150, figsize=(10, 4.2), layout='constrained')


def _draw_sizes(cases: Sequence[dict[str, Any]], axes: Any) -> None:
    lines: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for case in cases:
        for name, seconds in case['seconds'].items():
            per_image = statistics.median(seconds) / case['batch']
            lines.setdefault((name, case['batch']), []).append((pixels(case['size']), per_image))
    for (name, batch), points in lines.items():
        if not (pruned_share(name) or name.startswith('ours bf16')):
            style = '-' if batch == 1 else '--'
            axes.plot(*zip(*sorted(points), strict=True), style, marker='o', ms=3, label=f'{name}, batch {batch}')
    axes.set(xlabel='pixels', ylabel='seconds per image', title='size and batch')
    axes.legend(frameon=False, fontsize=6)


def _draw_shares(cases: Sequence[dict[str, Any]], axes: Any) -> None:
    for case in cases:
        shares = {share: name for name in case['seconds'] if (share := pruned_share(name)) is not None}
        if 0.0 in shares:
            whole = statistics.median(case['seconds'][shares[0.0]])
            points = sorted((share, statistics.median(case['seconds'][name]) / whole) for share, name in shares.items())
            label = f'{case["size"]}, batch {case["batch"]}'
            axes.plot(*zip(*points, strict=True), marker='o', ms=3, label=label)
    axes.set(xlabel='share of windows pruned', ylabel='time of all-high', ylim=(0, None), title='pruning')
    axes.legend(frameon=False, fontsize=6)


def plot_detector(seconds: Mapping[str, list[float]], parts: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Left: the parts of stock and of integers, stacked. Right: the median time of every way to run the detector.

    Args:
        seconds: of each round, by way; the first is the reference.
        parts: seconds of each part, by way.
        path: of the picture.
    """

    def draw(figure: Any) -> None:
        stacked, bars = figure.subplots(1, 2, width_ratios=(1, 1.6))
        bottoms = dict.fromkeys(parts, 0.0)
        names = next(iter(parts.values()))
        for number, part in enumerate(names):
            heights = [own.get(part, 0.0) for own in parts.values()]
            colour = f'C{number % 10}'
            hatch = '//' if number >= 10 else None  # the colours of the cycle begin again
            stacked.bar(list(parts), heights, bottom=list(bottoms.values()), label=part, color=colour, hatch=hatch)
            bottoms = {way: bottoms[way] + own.get(part, 0.0) for way, own in parts.items()}
        stacked.set(ylabel='seconds', title='parts')
        stacked.legend(frameon=False, fontsize=6)
        medians = {way: statistics.median(own) for way, own in seconds.items()}
        reference = next(iter(medians.values()))
        ways = sorted(medians, key=medians.__getitem__, reverse=True)
        drawn = bars.barh(ways, [medians[way] / reference for way in ways])
        bars.bar_label(drawn, [f'{medians[way] / reference:.2f}' for way in ways], padding=2, fontsize=7)
        bars.set(xlabel=f'time / {next(iter(medians))}', title='model only')

    save_figure(path, draw, dpi=150, figsize=(10, 4.2), layout='constrained')
