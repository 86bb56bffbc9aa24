"""The values that enter a layer, and the grid that they are rounded to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixaq_mmdet.quantization.layers import BranchQuantizers
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.reporting.figures import HIGH_COLOUR, LOW_COLOUR

BINS = 200
COLOURS = {'high': HIGH_COLOUR, 'low': LOW_COLOUR}
MOST_LINES = 64


class Seen(NamedTuple):
    """What one branch's quantizer of a layer took in."""

    branch: str
    bits: int
    values: np.ndarray
    levels: np.ndarray


def quantized_layers(model: nn.Module) -> dict[str, BranchQuantizers]:
    """Every quantized activation by name, such as ``stages.0.blocks.0.ffn.layers.1.input_quant``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BranchQuantizers)}


def find_layer(model: nn.Module, layer: str) -> tuple[str, BranchQuantizers]:
    """The activation called ``layer``, with or without '.input_quant'; a ValueError lists similar names."""
    known = quantized_layers(model)
    if not known:
        raise ValueError('--layer needs a quantized model; give a config with model.backbone.quant')
    for name in (layer, f'{layer}.input_quant', f'backbone.{layer}', f'backbone.{layer}.input_quant'):
        if name in known:
            return name, known[name]
    part = layer.removesuffix('.input_quant')[-16:]
    similar = [name for name in known if part in name][:5] or list(known)[:5]
    raise ValueError(f'--layer {layer!r} is not a quantized activation; use for example {similar}')


class Watch:
    """Forward hooks that keep what both quantizers of an activation took in and gave back."""

    def __init__(self, quantizers: BranchQuantizers) -> None:
        self.taken: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in quantizers.branches()}
        self.bits = {name: quantizer.bits for name, quantizer in quantizers.branches().items()}
        self.handles = [
            quantizer.register_forward_hook(self._keep(name)) for name, quantizer in quantizers.branches().items()
        ]

    def _keep(self, branch: str) -> Any:
        def keep(module: Quantizer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.taken[branch].append((inputs[0].detach().flatten().cpu(), output.detach().flatten().cpu()))

        return keep

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def seen(self) -> list[Seen]:
        """One entry for each branch that met a value."""
        found = []
        for branch, pairs in self.taken.items():
            if sum(len(values) for values, _ in pairs):
                values = torch.cat([values for values, _ in pairs]).numpy()
                levels = np.unique(torch.cat([output for _, output in pairs]).float().numpy().round(6))
                found.append(Seen(branch, self.bits[branch], values, levels))
        return found


def draw_histogram(figure: Any, layer: str, seen: list[Seen]) -> None:
    """A histogram for each branch, its levels as lines (ticks at the foot where a grid is too fine for lines)."""
    figure.set_size_inches(8, 2.6 * len(seen) + 0.5)
    axes = figure.subplots(len(seen), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (branch, bits, values, levels) in zip(axes, seen, strict=True):
        axis.hist(values, bins=BINS, color=COLOURS[branch], log=True)
        foot = 1.0 if len(levels) <= MOST_LINES else 0.06
        axis.vlines(levels, 0, foot, transform=axis.get_xaxis_transform(), color='black', lw=0.5, alpha=0.6)
        axis.set_ylabel('values (count)')
        axis.set_title(
            f'{branch} branch, {bits} bits: {len(levels)} levels met (black lines), {len(values)} values', fontsize=9
        )
    axes[-1].set_xlabel('activation (no unit)')
    figure.suptitle(layer, fontsize=10)
    figure.tight_layout()
