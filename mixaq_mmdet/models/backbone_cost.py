"""Bit operations of a Swin backbone as it stands: its geometry, its quantizers' bits, its ratios; no checkpoint needed
(but for a converted backbone, whose bits are in its file).

``windows/cost.py`` counts; this file only reads a backbone for it. A stock SwinTransformer counts as 32 bit, all
windows high.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmdet.models.backbones.swin import SwinTransformer
from torch import Tensor

from mixaq_mmdet.quantization import QuantWeight
from mixaq_mmdet.quantization.roles import QUERY_KEY, QUERY_KEY_VALUE
from mixaq_mmdet.windows.cost import Cost, Layer, LayerBits, SwinSpec, backbone_cost

from .block_shape import shape_of
from .two_branch_swin import TwoBranchSwin

FLOAT_BITS = 32
COMPENSATION = '.compensation'
Setting = tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]


def swin_spec(backbone: SwinTransformer) -> SwinSpec:
    """The numbers of a backbone's architecture that decide its cost."""
    projection: Any = backbone.patch_embed.projection
    stages: Any = list(backbone.stages)
    first = shape_of(stages[0].blocks[0])
    merges = [stage.downsample.sampler.stride[0] for stage in stages if stage.downsample is not None]
    return SwinSpec(
        embed_dims=projection.out_channels,
        depths=tuple(len(stage.blocks) for stage in stages),
        num_heads=tuple(shape_of(stage.blocks[0]).heads for stage in stages),
        window_size=first.window,
        mlp_ratio=first.hidden / first.channels,
        patch_size=projection.kernel_size[0],
        in_channels=projection.in_channels,
        strides=(projection.stride[0], *merges),
    )


def layer_bits(backbone: SwinTransformer, layer: Layer) -> LayerBits:
    """Bits of one layer, as the backbone's method gives them to its roles; 32 where a role stays float."""
    method = (backbone.quant_method or backbone.stored_bits) if isinstance(backbone, TwoBranchSwin) else None
    if not layer.roles:
        return LayerBits()
    compensation = layer.name.endswith(COMPENSATION)
    roles = {} if method is None else method.roles(layer.name.removesuffix(COMPENSATION))
    if method is not None and 'q' in layer.roles and reparameterises_queries(backbone):
        input_roles = method.roles(layer.name.replace(QUERY_KEY, QUERY_KEY_VALUE))
        roles = {**roles, 'k': input_roles.get('qkv_in', {})}  # keys are that input

    def bits(role: str, key: str = 'bits') -> int:
        config = roles.get(role, {})
        return config.get(key, config.get('bits', FLOAT_BITS))

    first, *rest = layer.roles
    second = rest[0] if rest else None
    return LayerBits(
        weight=FLOAT_BITS if compensation else bits('weight'),
        high=bits(first),
        low=bits(first, 'low_bits'),
        second_high=None if second is None else bits(second),
        second_low=None if second is None else bits(second, 'low_bits'),
    )


def backbone_bops(
    backbone: SwinTransformer,
    shape: tuple[int, int],
    low: tuple[float, ...] | None = None,
    prune: tuple[float, ...] | None = None,
) -> Cost:
    """The cost of one image of ``shape`` = (height, width) pixels, by default at the ratios of the present mode."""
    spec = swin_spec(backbone)
    if isinstance(backbone, TwoBranchSwin):
        low = backbone.low_ratios if low is None else low
        prune = backbone.prune_ratios if prune is None else prune
    none = (0.0,) * len(spec.pair_stages)
    cost = backbone_cost(
        spec,
        shape,
        none if low is None else low,
        none if prune is None else prune,
        lambda layer: layer_bits(backbone, layer),
    )
    layers = [as_reparameterised(backbone, layer) for layer in cost.layers]
    return replace(cost, layers=[*layers, *compensation_layers(backbone, layers)])


def reparameterises_queries(backbone: SwinTransformer) -> bool:
    """Whether attention takes queries from the product of query and key weights, and its input for keys."""
    method = backbone.quant_method if isinstance(backbone, TwoBranchSwin) else None
    return method is not None and method.reparameterises_queries


def as_reparameterised(backbone: SwinTransformer, layer: Layer) -> Layer:
    """The layer with the MACs that it has where queries come from the product of query and key weights."""
    attention, _, name = layer.name.rpartition('.')
    if name not in ('qkv', 'query_key') or not reparameterises_queries(backbone):
        return layer
    heads: Any = backbone.get_submodule(attention).num_heads

    def macs(stock: int) -> int:
        # C queries per head and C values instead of C queries, keys and values; products over C instead of C / heads
        return stock * (heads + 1) // 3 if name == 'qkv' else stock * heads

    return replace(layer, executed=macs(layer.executed), window=macs(layer.window))


def compensation_layers(backbone: SwinTransformer, layers: Sequence[Layer]) -> list[Layer]:
    """The two products of each low-rank compensation: float factors on the layer's input and on its own result."""
    added: list[Layer] = []
    if not isinstance(backbone, TwoBranchSwin) or backbone.quant_method is None:
        return added
    for layer in layers:
        module: Any = None if layer.kind == 'matmul' else backbone.get_submodule(layer.name)
        compensation: Any = module.compensation if isinstance(module, QuantWeight) else None
        if compensation is None or compensation.rank == 0:
            continue
        outputs, inputs = module.weight.shape
        for name, roles, factor in ((COMPENSATION, layer.roles, outputs), (f'{COMPENSATION}.up', (), inputs)):
            executed, window = (macs * compensation.rank // factor for macs in (layer.executed, layer.window))
            added.append(replace(layer, name=layer.name + name, roles=roles, executed=executed, window=window))
    return added


class CostMeter:
    """Counts what a backbone really ran: sizes and ratios of every input, then means over the inputs.

    ``watch`` is a forward pre-hook; ``settings`` counts images by (size, low ratios, prune ratios).
    """

    def __init__(self) -> None:
        self.settings: Counter[Setting] = Counter()

    def watch(self, backbone: Any, inputs: tuple[Tensor, ...]) -> None:
        """Note one forward of ``backbone`` on (B, C, H, W) images."""
        images, _, height, width = inputs[0].shape
        self.settings[((height, width), backbone.low_ratios, backbone.prune_ratios)] += images

    def summary(self, backbone: SwinTransformer) -> dict[str, Any]:
        """Means over all inputs: activation bits and relative cost (sums of bit operations), realised ratios."""
        operations = dense = bits = 0.0
        pairs = len(swin_spec(backbone).pair_stages)
        low, prune = [0.0] * pairs, [0.0] * pairs
        images = sum(self.settings.values())
        for (shape, low_ratios, prune_ratios), number in self.settings.items():
            cost = backbone_bops(backbone, shape, low_ratios, prune_ratios)
            spent = cost.bit_operations('paper')
            operations += number * spent
            dense += number * spent / cost.relative('paper')
            bits += number * cost.mean_activation_bits() / images
            for total, realised in zip((low, prune), cost.realised, strict=True):
                for pair, ratio in enumerate(realised):
                    total[pair] += number * ratio / images
        return {
            'images': images,
            'mean_activation_bits': bits,
            'relative': operations / dense if dense else 1.0,
            'realised_low_ratios': low,
            'realised_prune_ratios': prune,
        }
