"""Bit operations of a TwoBranchSwin as it stands: its geometry, its quantizers' bits, its ratios; no checkpoint needed.

``windows/cost.py`` counts; this file only reads a backbone for it.
"""

from __future__ import annotations

from typing import Any

from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.windows.cost import Cost, Layer, LayerBits, SwinSpec, backbone_cost

FLOAT_BITS = 32


def swin_spec(backbone: TwoBranchSwin) -> SwinSpec:
    """The numbers of a backbone's architecture that decide its cost."""
    projection: Any = backbone.patch_embed.projection
    stages: Any = list(backbone.stages)
    first = stages[0].blocks[0]
    merges = [stage.downsample.sampler.stride[0] for stage in stages if stage.downsample is not None]
    return SwinSpec(
        embed_dims=projection.out_channels,
        depths=tuple(len(stage.blocks) for stage in stages),
        num_heads=tuple(stage.blocks[0].attn.w_msa.num_heads for stage in stages),
        window_size=first.attn.window_size,
        mlp_ratio=first.ffn.feedforward_channels / first.ffn.embed_dims,
        patch_size=projection.kernel_size[0],
        in_channels=projection.in_channels,
        strides=(projection.stride[0], *merges),
    )


def layer_bits(backbone: TwoBranchSwin, layer: Layer) -> LayerBits:
    """Bits of one layer, as the backbone's method gives them to its roles; 32 where a role stays float."""
    method = getattr(backbone, 'quant_method', None)
    roles = {} if method is None else method.roles(layer.name)

    def bits(role: str, key: str = 'bits') -> int:
        config = roles.get(role, {})
        return config.get(key, config.get('bits', FLOAT_BITS))

    first, *rest = layer.roles
    second = rest[0] if rest else None
    return LayerBits(
        weight=bits('weight'),
        high=bits(first),
        low=bits(first, 'low_bits'),
        second_high=None if second is None else bits(second),
        second_low=None if second is None else bits(second, 'low_bits'),
    )


def backbone_bops(backbone: TwoBranchSwin, shape: tuple[int, int]) -> Cost:
    """The cost of one image of ``shape`` = (height, width) pixels at the ratios of the backbone's present mode."""
    return backbone_cost(
        swin_spec(backbone),
        shape,
        backbone.low_ratios,
        backbone.prune_ratios,
        lambda layer: layer_bits(backbone, layer),
    )
