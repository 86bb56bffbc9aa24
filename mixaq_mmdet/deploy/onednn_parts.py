"""What lies between the blocks, for torch's own oneDNN int8 operators: patch embedding, patch merging, output norms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import to_codes
from .layouts import Geometry, Grid, Layer, LinearWeights
from .onednn_block import NormedCodes
from .onednn_layer import int8_layer

Size = tuple[int, int]
CACHED_TOKENS = 2048  # worked on while they are in the cache; memory for whole maps would be mapped anew each time


class OnednnEmbedding:
    """The patch embedding: a convolution from codes, channels last, whose result is the residual stream as it lies.

    Args:
        embed: the stock embedding.
        weights: of its projection.
        grid: of its input, without offsets.
    """

    def __init__(self, embed: Any, weights: LinearWeights, grid: Grid) -> None:
        projection = embed.projection
        geometry = Geometry(projection.kernel_size, projection.stride, (0, 0), (1, 1), 1)
        self.embed, self.grid, self.layer = embed, grid, int8_layer(Layer(weights, grid, geometry))

    def __call__(self, images: Tensor) -> tuple[Tensor, Size]:
        """Images (B, in_channels, H, W) to (B, H' * W', N) and (H', W')."""
        if self.embed.adap_padding:
            images = self.embed.adap_padding(images)
        x = self.layer(to_codes(images, self.grid)).permute(0, 2, 3, 1)
        stream = x.contiguous().flatten(1, 2)
        if self.embed.norm is not None:
            for part in stream.split(CACHED_TOKENS, dim=1):
                part.copy_(self.embed.norm(part))
        return stream, (x.shape[1], x.shape[2])


class OnednnMerging:
    """The merging of 2 x 2 tokens, which are put side by side: a copy of whole rows of channels.

    Args:
        downsample: the stock merging.
        weights: of its reduction; inputs are the four tokens of a channel, channel after channel.
        grid: of its input, of one step.
    """

    def __init__(self, downsample: Any, weights: LinearWeights, grid: Grid) -> None:
        self.channels = weights.codes.shape[1] // 4
        order = torch.arange(4 * self.channels).view(self.channels, 4).t().flatten()
        grid = grid._replace(before=_ordered(grid.before, order), after=_ordered(grid.after, order))
        norm = downsample.norm
        parameters = (norm.weight[order].unsqueeze(0), norm.bias[order].unsqueeze(0))
        self.codes = NormedCodes(parameters, 0, grid, norm.eps)
        self.layer = int8_layer(Layer(weights._replace(codes=weights.codes[:, order]), grid))

    def __call__(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        """(B, H * W, C) to (B, H' * W', N), and (H', W')."""
        batch, (height, width) = len(x), size
        x = x.view(batch, height, width, self.channels)
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        height, width = x.shape[1] // 2, x.shape[2] // 2
        pairs = x.view(batch, height, 2, width, 2 * self.channels).transpose(2, 3)
        codes = torch.empty((batch, height, width, 4 * self.channels), dtype=torch.uint8)
        rows = max(CACHED_TOKENS // width, 1)
        for place, part in zip(codes.split(rows, dim=1), pairs.split(rows, dim=1), strict=True):
            place.copy_(self.codes(part.reshape(place.shape)))
        return self.layer(codes.flatten(1, 2)), (height, width)


class OnednnOutput:
    """An output norm.

    Args:
        norm: the norm.
        grid: of the codes that are wanted, of one step; None for floats.
    """

    def __init__(self, norm: nn.LayerNorm, grid: Grid | None) -> None:
        parameters = (norm.weight.unsqueeze(0), norm.bias.unsqueeze(0))
        self.norm = norm
        self.codes = None if grid is None else NormedCodes(parameters, 0, grid, norm.eps)

    def __call__(self, x: Tensor, size: Size) -> Tensor:
        """(B, H * W, C) to (B, C, H, W): floats, or uint8 codes channels last."""
        batch, length, channels = x.shape
        if self.codes is not None:
            return self.codes(x).view(batch, *size, channels).permute(0, 3, 1, 2)
        out = torch.empty(batch, channels, length)
        for target, tokens in zip(out, x, strict=True):
            # chunk by chunk: torch takes five times as long to turn over the whole
            parts = zip(target.split(CACHED_TOKENS, dim=1), tokens.split(CACHED_TOKENS), strict=True)
            for place, part in parts:
                place.copy_(self.norm(part).t())
        return out.view(batch, channels, *size)


def _ordered(offsets: Tensor | None, order: Tensor) -> Tensor | None:
    return None if offsets is None else offsets[order]
