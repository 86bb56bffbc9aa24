"""One picture per layer-wise analysis: bars over the layers in forward order, one panel per quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS, save_figure

SHORT = {'attn.w_msa.': '', 'stages.': 's', '.blocks.': 'b', 'ffn.layers.0.0': 'fc1', 'ffn.layers.1': 'fc2'}


def short_name(layer: str) -> str:
    """'stages.0.blocks.1.ffn.layers.1' to 's0b1.fc2'."""
    for long, short in SHORT.items():
        layer = layer.replace(long, short)
    return layer.replace('downsample.reduction', 'merge')


def plot_layers(
    path: Path, panels: Mapping[str, Mapping[str, float]], logarithmic: tuple[str, ...] = (), title: str = ''
) -> None:
    """Write a picture with one panel per quantity; all share their layers. The title names the unit."""
    layers = list(next(iter(panels.values())))

    def draw(figure: Any) -> None:
        figure.set_size_inches(14, 2.2 * len(panels) + 1)
        _draw(figure, panels, layers, logarithmic, title)

    save_figure(path, draw)


def _draw(
    figure: Any,
    panels: Mapping[str, Mapping[str, float]],
    layers: Sequence[str],
    logarithmic: tuple[str, ...],
    title: str,
) -> None:
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axis, (name, values) in zip(axes[:, 0], panels.items(), strict=True):
        axis.bar(range(len(layers)), [values.get(layer, 0) for layer in layers], color=COLOURS[0])
        axis.set_ylabel(name)
        if name in logarithmic:
            axis.set_yscale('log')
        axis.margins(x=0.005)
    axes[-1, 0].set_xticks(range(len(layers)), [short_name(name) for name in layers], rotation=90, fontsize=6)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
