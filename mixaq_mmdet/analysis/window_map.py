"""Window maps: which windows of an image run high, low or not at all, and how they scored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from mixaq_mmdet.models.stage_windows import Ranking, StageRecord
from mixaq_mmdet.windows.geometry import reverse

HIGH, LOW, PRUNED = range(3)
# Okabe-Ito colours: told apart by people with any kind of colour blindness, and by lightness in print
TIER_COLOURS = {HIGH: (1.0, 1.0, 1.0), LOW: (0.90, 0.62, 0.0), PRUNED: (0.0, 0.0, 0.0)}
TIER_OPACITY = {HIGH: 0.0, LOW: 0.55, PRUNED: 0.78}
TIER_NAMES = {HIGH: 'high bits', LOW: 'low bits', PRUNED: 'pruned'}
LINE_COLOUR = (1.0, 1.0, 1.0)
PAIRS_PER_ROW = 6
PANEL_INCHES = 2.3


class Panel(NamedTuple):
    """One grid of one block pair.

    Attributes:
        stage, pair: indices; the pair counts within its stage.
        shifted: whether it is the grid of the pair's second block.
        tiers: (H, W) HIGH, LOW or PRUNED for each token.
        windows: (H, W) index of each token's window.
    """

    stage: int
    pair: int
    shifted: bool
    tiers: np.ndarray
    windows: np.ndarray


def _over_tokens(values: torch.Tensor, record: StageRecord, shifted: bool) -> np.ndarray:
    """A value per window, (windows,), as a map (H, W): the window's value at each of its tokens."""
    window = record.window_size
    spread = values.view(1, -1, 1, 1).expand(1, len(values), window * window, 1)
    return reverse(spread, *record.size, window, window // 2 if shifted else 0)[0, :, :, 0].cpu().numpy()


def _ranking(record: StageRecord, shifted: bool) -> Ranking:
    return record.shifted if shifted else record.regular


def tier_map(record: StageRecord, pair: int, shifted: bool = False, image: int = 0) -> np.ndarray:
    """The tier of each token, (H, W), in one grid of a stage's block pair."""
    order = _ranking(record, shifted).order[image]
    high, low, _ = record.counts[pair]
    tiers = torch.full_like(order, PRUNED)
    tiers[order[:high]] = HIGH
    tiers[order[high : high + low]] = LOW
    return _over_tokens(tiers, record, shifted)


def window_index_map(record: StageRecord, shifted: bool = False) -> np.ndarray:
    """The index of each token's window, (H, W)."""
    count = _ranking(record, shifted).order.shape[1]
    return _over_tokens(torch.arange(count), record, shifted)


def score_map(record: StageRecord, shifted: bool = False, image: int = 0) -> np.ndarray:
    """The importance of each token's window, (H, W)."""
    return _over_tokens(_ranking(record, shifted).scores[image].float(), record, shifted)


def panels(records: list[StageRecord], depths: tuple[int, ...], image: int = 0) -> list[Panel]:
    """Both grids of every block pair; an odd last block has the regular one only."""
    found = []
    for record, depth in zip(records, depths, strict=False):
        for pair in range(len(record.counts)):
            for shifted in (False, True)[: min(2, depth - 2 * pair)]:
                tiers = tier_map(record, pair, shifted, image)
                found.append(Panel(record.stage, pair, shifted, tiers, window_index_map(record, shifted)))
    return found


def enlarged(tokens: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map of tokens (h, w) at the pixels of the image (H, W) that it covers."""
    stride = max(-(-size[0] // tokens.shape[0]), -(-size[1] // tokens.shape[1]))
    return tokens.repeat(stride, 0).repeat(stride, 1)[: size[0], : size[1]]


def overlay(image: np.ndarray, panel: Panel, lines: bool = True) -> np.ndarray:
    """Tint an image by tier and draw the window borders.

    Args:
        image: (H, W, 3) RGB in [0, 1].
        panel: the map.
        lines: draw borders where they leave room to see the windows.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    size = image.shape[:2]
    tiers = enlarged(panel.tiers, size)
    picture = image.copy()
    for tier, colour in TIER_COLOURS.items():
        where = tiers == tier
        opacity = TIER_OPACITY[tier]
        picture[where] = (1 - opacity) * picture[where] + opacity * np.array(colour)
    if lines:
        windows = enlarged(panel.windows, size)
        border = np.zeros(size, bool)
        border[1:] |= windows[1:] != windows[:-1]
        border[:, 1:] |= windows[:, 1:] != windows[:, :-1]
        picture[border] = 0.45 * picture[border] + 0.55 * np.array(LINE_COLOUR)
    return picture


def draw_window_map(figure: Any, image: np.ndarray, records: list[StageRecord], depths: tuple[int, ...]) -> None:
    """A column for each block pair: the regular grid above, the shifted one below."""
    from matplotlib.patches import Patch

    every = panels(records, depths)
    pairs = list(dict.fromkeys((panel.stage, panel.pair) for panel in every))
    columns = min(len(pairs), PAIRS_PER_ROW)
    rows = 2 * -(-len(pairs) // columns)
    aspect = image.shape[0] / image.shape[1]
    figure.set_size_inches(columns * PANEL_INCHES + 0.3, rows * (PANEL_INCHES * aspect + 0.3) + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for panel in every:
        number = pairs.index((panel.stage, panel.pair))
        axis = axes[2 * (number // columns) + panel.shifted, number % columns]
        axis.imshow(overlay(image, panel), interpolation='nearest')
        grid = 'shifted' if panel.shifted else 'regular'
        axis.set_title(f'stage {panel.stage + 1}, pair {panel.pair + 1}, {grid}', fontsize=8, pad=3)
    present = {int(tier) for panel in every for tier in np.unique(panel.tiers)}
    handles = [
        Patch(facecolor=(*TIER_COLOURS[tier], TIER_OPACITY[tier]), edgecolor='black', label=TIER_NAMES[tier])
        for tier in sorted(present)
    ]
    figure.legend(handles=handles, loc='lower center', ncols=len(handles), frameon=False, fontsize=9)
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - 0.25 / figure.get_figheight(), bottom=0.35 / figure.get_figheight(), wspace=0.04,
        hspace=0.14,
    )  # fmt: skip


def draw_scores(figure: Any, image: np.ndarray, records: list[StageRecord]) -> None:
    """Importance of the regular windows over the darkened image, a stage each."""
    aspect = image.shape[0] / image.shape[1]
    figure.set_size_inches(len(records) * 2.9, 2.6 * aspect + 0.6)
    axes = figure.subplots(1, len(records), squeeze=False)[0]
    for axis, record in zip(axes, records, strict=True):
        axis.imshow(image.mean(axis=2), cmap='gray', vmin=0, vmax=1)
        scores = enlarged(score_map(record), image.shape[:2])
        shown = axis.imshow(scores, cmap='viridis', alpha=0.7, interpolation='nearest')
        axis.set_title(f'stage {record.stage + 1}: {record.regular.order.shape[1]} windows', fontsize=9)
        axis.axis('off')
        bar = figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.03)
        bar.set_label('importance (window score)', fontsize=7)
        bar.ax.tick_params(labelsize=7)
    figure.tight_layout()
