"""A stock Swin Transformer that is built and loaded already becomes a TwoBranchSwin, in place."""

from __future__ import annotations

import math
from typing import Any

from mmdet.models.backbones.swin import SwinTransformer

from .two_branch_swin import TwoBranchSwin


def to_two_branch(stock: SwinTransformer) -> TwoBranchSwin:
    """Turn a stock backbone into a TwoBranchSwin with every window high; parameters and outputs stay what they are."""
    if type(stock) is not SwinTransformer:
        raise ValueError(
            f"the backbone is {type(stock).__name__}, and only mmdet's SwinTransformer can become a TwoBranchSwin; "
            "build the detector with backbone=dict(type='SwinTransformer') or 'TwoBranchSwin'"
        )
    size = _pretrain_size(stock)
    backbone: Any = stock
    backbone.__class__ = TwoBranchSwin
    backbone.branch_out(size)
    return backbone


def _pretrain_size(stock: Any) -> tuple[int, int]:
    """(height, width) that an absolute position embedding was trained for; without one any size will do."""
    if not stock.use_abs_pos_embed:
        return 0, 0
    patches, step = stock.absolute_pos_embed.shape[1], stock.patch_embed.projection.stride[0]
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(
            f'use_abs_pos_embed=True with {patches} patches, which are no square: the backbone does not tell their '
            "height and width; build it as dict(type='TwoBranchSwin', pretrain_img_size=(height, width))"
        )
    return side * step, side * step
