"""What quantizing one layer alone costs: all quantizers are off but those of that layer.

Ranges come from a calibration of the whole model at the same bits (our choice): a fold without its quantizers is
exact, so that with all of them off the model is the float one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from mixaq_mmdet.engine.progress import watched
from mixaq_mmdet.models.backbone_cost import swin_spec
from mixaq_mmdet.quantization import quantizer_mode
from mixaq_mmdet.windows.cost import backbone_layers

FIXED = ('patch_embed.projection',)
"""Layers whose bits are not chosen: the image stays at eight bits."""


def layer_names(backbone: Any) -> list[str]:
    """Module paths of the layers that get bits of their own, in forward order."""
    used = range(max(backbone.out_indices) + 1)
    last = len(used) - 1
    return [
        layer.name
        for layer in backbone_layers(swin_spec(backbone), (32, 32))
        if layer.name not in FIXED and layer.stage in used and not (layer.stage == last and 'merge_in' in layer.roles)
    ]


@contextmanager
def alone(backbone: nn.Module, layer: str) -> Iterator[None]:
    """Quantize nothing but ``layer`` (a module path) while the context is open."""
    try:
        module = backbone.get_submodule(layer)
    except AttributeError as error:
        raise ValueError(
            f'layer {layer!r} is not in the backbone; use a path such as {layer_names(backbone)[0]!r}'
        ) from error
    with quantizer_mode(backbone, 'float'), quantizer_mode(module, 'quantize'):
        yield


def layer_sensitivity(
    detectors: Mapping[int, Any] | Callable[[int], Any],
    bits: list[int],
    measure: Callable[[nn.Module], float],
) -> dict[str, dict[int, float]]:
    """Loss per layer and bits, never below zero and never larger at more bits.

    A measurement on few images may come out better with fewer bits; the least loss of all coarser grids is kept then,
    so that an allocation does not chase noise (our choice).

    Args:
        detectors: a calibrated detector for each bit width, or a function that makes one.
        bits: widths to try.
        measure: loss of a detector against the float one, e.g. ``Divergence``.

    Returns:
        ``result[layer][bits]``.
    """
    found: dict[str, dict[int, float]] = {}
    for width in sorted(bits):
        detector = detectors(width) if callable(detectors) else detectors[width]
        for name in watched(f'one layer alone at {width} bits', layer_names(detector.backbone)):
            with alone(detector.backbone, name):
                found.setdefault(name, {})[width] = max(measure(detector), 0.0)
    return {name: _falling(losses) for name, losses in found.items()}


def _falling(losses: dict[int, float]) -> dict[int, float]:
    least = float('inf')
    result = {}
    for width in sorted(losses):
        least = min(least, losses[width])
        result[width] = least
    return result
