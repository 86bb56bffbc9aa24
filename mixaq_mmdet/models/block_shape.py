"""The numbers that say what a Swin block is: stock, with two branches, or converted."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmdet.models.backbones.swin import SwinBlock


class BlockShape(NamedTuple):
    """Sizes of a block.

    Attributes:
        channels: of the residual stream.
        hidden: channels of its FFN.
        heads: attention heads.
        window: side of a window in tokens.
        shift: by how many tokens its windows are shifted.
    """

    channels: int
    hidden: int
    heads: int
    window: int
    shift: int


def stock_shape(block: Any) -> BlockShape:
    """Of a block that has stock's attention and FFN."""
    attention, ffn = block.attn, block.ffn
    heads, window, shift = attention.w_msa.num_heads, attention.window_size, attention.shift_size
    return BlockShape(ffn.embed_dims, ffn.feedforward_channels, heads, window, shift)


def shape_of(block: Any) -> BlockShape:
    """Of any block: a converted one knows its own."""
    return stock_shape(block) if isinstance(block, SwinBlock) else block.shape
