"""Windows in a layout that depends on sizes and ratios only: nothing but the order of the windows is data.

:func:`assign` counts the windows of a kind and the real tokens of a branch, which depend on the scores: the host has to
wait for them, and exporters refuse them. Here padding tokens stay in their windows and each window takes its mask by an
index, so that every shape is known before the first score. The result is the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .assignment import TierCounts
from .geometry import WindowGrid


class StaticLayout(NamedTuple):
    """What is constant for one grid, one batch size and one choice of ratios.

    Attributes:
        counts: windows per tier in each image.
        rows: (windows, tokens) row of the flattened H * W map of each window token; padding takes row 0.
        real: (windows, tokens) bool, False for padding; None if there is none.
        kinds: (windows,) which attention mask a window needs; None without shift.
        images: (kept,) the image of each kept window: the high windows of all images, then the low ones.
        places: (B, windows) where the window of each rank stands among the kept ones; ``kept`` for pruned ones.
        window_of: (H * W,) the window of each token of the map.
        slot_of: (H * W,) the token's place in its window.
    """

    counts: TierCounts
    rows: Tensor
    real: Tensor | None
    kinds: Tensor | None
    images: Tensor
    places: Tensor
    window_of: Tensor
    slot_of: Tensor


class StaticRun(NamedTuple):
    """The kept windows of a batch, padding tokens included; first those of the high branch, then those of the low one.

    Attributes:
        counts: windows per tier in each image.
        rows: (kept * tokens,) row of each window token in the flattened (B * H * W) stream.
        back: (B * H * W,) row of each token of the stream among the kept tokens, followed by the stream itself, from
            which tokens of pruned windows come.
        images: (kept,) the image of each window.
        real: (kept, tokens) bool, False for padding; None if there is none.
        kinds: (kept,) which attention mask a window needs; None without shift.
        windows: number of kept windows.
        high_windows: how many of them, from the front, are in the high branch.
        slots: none, as in a ``Run`` without padding: every token of a window is there.
    """

    counts: TierCounts
    rows: Tensor
    back: Tensor
    images: Tensor
    real: Tensor | None
    kinds: Tensor | None
    windows: int
    high_windows: int
    slots: None = None

    @property
    def high_tokens(self) -> int:
        """Tokens of the high branch, padding included."""
        return self.high_windows * (len(self.rows) // max(self.windows, 1))


def static_layout(grid: WindowGrid, counts: TierCounts, batch: int) -> StaticLayout:
    """The constants of a map's windows."""
    windows, tokens = grid.rows.shape
    device = grid.rows.device
    image = torch.arange(batch, device=device)
    rank = torch.arange(windows, device=device)
    high, low, _ = counts
    kept = batch * (high + low)
    in_high = image[:, None] * high + rank
    in_low = batch * high + image[:, None] * low + rank - high
    places = torch.where(rank < high, in_high, torch.where(rank < high + low, in_low, kept))
    token = torch.arange(windows * tokens, device=device)
    # of the last rows written, padding's are cut off again
    home = torch.zeros(grid.height * grid.width + 1, dtype=torch.long, device=device)
    home = home.scatter(0, grid.rows.flatten() % len(home), token)[:-1]
    return StaticLayout(
        counts,
        grid.rows.clamp(min=0),
        grid.real if grid.padded else None,
        grid.kinds if grid.shifted else None,
        torch.cat((image.repeat_interleave(high), image.repeat_interleave(low))),
        places,
        home // tokens,
        home % tokens,
    )


def place_windows(order: Tensor | None, layout: StaticLayout) -> StaticRun:
    """Fill the layout with the windows in their order.

    Args:
        order: (B, windows) from ``rank_windows``; None for the order of the grid.
        layout: from :func:`static_layout`.
    """
    high, low, pruned = layout.counts
    batch, windows = layout.places.shape
    tokens, length = layout.rows.shape[1], len(layout.window_of)
    kept = len(layout.images)
    if order is None:
        order = torch.arange(windows, device=layout.rows.device).expand(batch, -1)
    chosen = torch.cat((order[:, :high].flatten(), order[:, high : high + low].flatten()))
    rows = layout.rows.index_select(0, chosen) + (layout.images * length).unsqueeze(1)
    home = torch.zeros_like(layout.places).scatter(1, order, layout.places)
    window = home.index_select(1, layout.window_of)
    back = window * tokens + layout.slot_of
    if pruned:
        own = kept * tokens + torch.arange(batch * length, device=rows.device).view(batch, length)
        back = torch.where(window == kept, own, back)
    return StaticRun(
        layout.counts,
        rows.flatten(),
        back.flatten(),
        layout.images,
        None if layout.real is None else layout.real.index_select(0, chosen),
        None if layout.kinds is None else layout.kinds.index_select(0, chosen),
        kept,
        batch * high,
    )
