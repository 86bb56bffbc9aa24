"""The backbone arguments that a Swin state dict in mmdet names was trained with, read from its tensor shapes."""

from __future__ import annotations

import math
from typing import Any

from .checkpoint_dialects import PREFIX, StateDict


def infer_backbone_cfg(state_dict: StateDict) -> dict[str, Any]:
    """Return the SwinTransformer arguments of the backbone under ``backbone.`` in ``state_dict``.

    Only what shapes tell: the pretraining image size is the square of the position embedding, dropout is unknown.
    """
    backbone = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    try:
        return _infer(backbone)
    except KeyError as missing:
        raise ValueError(f'SRC: the backbone lacks {missing}, without which its geometry cannot be read') from None


def _infer(backbone: StateDict) -> dict[str, Any]:
    blocks = sorted({_block_id(key) for key in backbone if key.startswith('stages.') and '.blocks.' in key})
    depths = [sum(stage == number for number, _ in blocks) for stage in range(1 + blocks[-1][0])]
    table_name = 'stages.{}.blocks.{}.attn.w_msa.relative_position_bias_table'
    tables = {block: backbone[table_name.format(*block)] for block in blocks}
    window_sizes = {(math.isqrt(table.shape[0]) + 1) // 2 for table in tables.values()}
    if len(window_sizes) > 1:
        raise ValueError(
            f'SRC: its stages use different window sizes {sorted(window_sizes)}, as classifiers do at small inputs; '
            'TwoBranchSwin has one window_size for all stages'
        )
    patches = backbone['patch_embed.projection.weight']
    first = 'stages.0.blocks.0'
    cfg: dict[str, Any] = dict(
        in_channels=patches.shape[1],
        embed_dims=patches.shape[0],
        patch_size=patches.shape[2],
        strides=(patches.shape[2],) + (2,) * (len(depths) - 1),
        window_size=window_sizes.pop(),
        mlp_ratio=backbone[f'{first}.ffn.layers.0.0.weight'].shape[0] // patches.shape[0],
        depths=tuple(depths),
        num_heads=tuple(tables[stage, 0].shape[1] for stage in range(len(depths))),
        out_indices=tuple(stage for stage in range(len(depths)) if f'norm{stage}.weight' in backbone),
        qkv_bias=f'{first}.attn.w_msa.qkv.bias' in backbone,
        patch_norm='patch_embed.norm.weight' in backbone,
    )
    if 'absolute_pos_embed' in backbone:
        side = math.isqrt(backbone['absolute_pos_embed'].shape[1])
        cfg.update(use_abs_pos_embed=True, pretrain_img_size=side * patches.shape[2])
    return cfg


def _block_id(key: str) -> tuple[int, int]:
    _, stage, _, block = key.split('.')[:4]
    return int(stage), int(block)
