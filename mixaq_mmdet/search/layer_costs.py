"""What bits per layer cost, given the ratios, and what ratios cost, given the bits: the choices of an allocation.

Budgets are shares of the uniform model that the config describes, with every window high, in standard bit operations
(MACs x weight bits x activation bits): the only count in which weight bits show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixaq_mmdet.analysis.layer_sensitivity import layer_names
from mixaq_mmdet.models.backbone_cost import layer_bits, swin_spec
from mixaq_mmdet.windows.assignment import TierCounts
from mixaq_mmdet.windows.cost import Cost, Layer, LayerBits, backbone_layers, pair_tiers

from .allocation import Choice, half_bits

CONVENTION = 'standard'
RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8)


class LayerCosts:
    """Costs of a backbone's layers for one image of ``shape``.

    Args:
        backbone: whose geometry counts, and the bits of layers that get none of their own.
        shape: (height, width) in pixels.
    """

    def __init__(self, backbone: Any, shape: tuple[int, int]) -> None:
        self.spec = swin_spec(backbone)
        self.shape = shape
        names = set(layer_names(backbone))
        used = range(-1, max(backbone.out_indices) + 1)
        layers = [layer for layer in backbone_layers(self.spec, shape) if layer.stage in used]
        self.chosen = {layer.name: layer for layer in layers if layer.name in names}
        self.fixed = [layer for layer in layers if layer.name == 'patch_embed.projection']
        self._fixed_bits = {layer.name: layer_bits(backbone, layer) for layer in self.fixed}
        self.weights = {name: _weights(backbone, name) for name in self.chosen}

    def fixed_bits(self, weight_bits: int, input_bits: int = 8) -> None:
        """Set the bits of the patch embedding, where the backbone at hand is a float one."""
        self._fixed_bits = {layer.name: LayerBits(weight_bits, input_bits, input_bits) for layer in self.fixed}

    def tiers(self, low_ratios: Sequence[float] | None) -> list[TierCounts]:
        """Windows per pair and tier."""
        return pair_tiers(self.spec, self.shape, low_ratios or [0.0] * len(self.spec.pair_stages))

    def operations(self, bits: Mapping[str, int], low_ratios: Sequence[float] | None = None) -> int:
        """Bit operations of the whole backbone."""
        tiers = self.tiers(low_ratios)
        own = sum(_operations(self.chosen[name], tiers, value) for name, value in bits.items())
        return own + self.fixed_operations

    @property
    def fixed_operations(self) -> int:
        """Bit operations of layers whose bits are not chosen."""
        return Cost(self.fixed, self.tiers(None), lambda layer: self._fixed_bits[layer.name]).bit_operations(CONVENTION)

    def size(self, bits: Mapping[str, int]) -> int:
        """Bits of storage of the weights whose bits are chosen."""
        return sum(self.weights[name] * value for name, value in bits.items())

    def uniform(self, bits: int) -> dict[str, int]:
        """The same bits for every layer."""
        return dict.fromkeys(self.chosen, bits)

    def bit_choices(
        self,
        importance: Mapping[str, float],
        sensitivity: Mapping[str, Mapping[int, float]],
        low_ratios: Sequence[float] | None = None,
    ) -> dict[str, list[Choice]]:
        """Bits of each layer: loss = importance x sensitivity (Mix-QViT)."""
        tiers = self.tiers(low_ratios)
        return {
            name: [
                Choice(bits, importance[name] * loss, self.weights[name] * bits, _operations(layer, tiers, bits))
                for bits, loss in sorted(sensitivity[name].items())
            ]
            for name, layer in self.chosen.items()
        }

    def ratio_choices(
        self, bits: Mapping[str, int], losses: Mapping[int, Mapping[float, float]]
    ) -> dict[str, list[Choice]]:
        """Low ratio of each block pair, given the layers' bits: ``losses[pair][ratio]``."""
        choices = {}
        for pair, by_ratio in losses.items():
            layers = [layer for layer in self.chosen.values() if layer.pair == pair]
            row = []
            for ratio, loss in sorted(by_ratio.items()):
                tiers = self.tiers([ratio if p == pair else 0.0 for p in range(len(self.spec.pair_stages))])
                row.append(Choice(ratio, loss, 0, sum(_operations(layer, tiers, bits[layer.name]) for layer in layers)))
            choices[str(pair)] = row
        return choices

    def outside_pairs(self, bits: Mapping[str, int]) -> int:
        """Bit operations that no ratio changes."""
        layers = [layer for layer in self.chosen.values() if layer.pair is None]
        tiers = self.tiers(None)
        return self.fixed_operations + sum(_operations(layer, tiers, bits[layer.name]) for layer in layers)


def mean_bits(costs: LayerCosts, bits: Mapping[str, int]) -> float:
    """Bits averaged over MACs."""
    macs = {name: layer.executed for name, layer in costs.chosen.items()}
    return sum(bits[name] * macs[name] for name in macs) / sum(macs.values())


def _operations(layer: Layer, tiers: list[TierCounts], bits: int) -> int:
    return Cost([layer], tiers, LayerBits(bits, bits, half_bits(bits))).bit_operations(CONVENTION)


def _weights(backbone: Any, name: str) -> int:
    # attention products have no weight; in a float backbone there is not even a module
    try:
        weight = getattr(backbone.get_submodule(name), 'weight', None)
    except AttributeError:
        return 0
    return 0 if weight is None else weight.numel()
