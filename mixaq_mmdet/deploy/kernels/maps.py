"""What lies between the blocks, by the kernels: patch embedding, patch merging, output norms."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layouts import Grid, LinearWeights
from ..products import steps_of
from ..tensor_checks import checked
from .build import Kernels
from .memory import MAPS
from .operation import Operation, norm_on_grid, top
from .panels import pack_linear
from .structures import ByteImage, Embedding, Merging

Size = tuple[int, int]


class IntegerMerging(Operation):
    """Patch merging: 2 x 2 tokens, norm, codes, product.

    Args:
        kernels: from ``load``.
        reduction: (N, 4 * C), inputs in the order of stock's Unfold: channel by channel, its four corners.
        gamma: (4 * C,) of the norm, same order.
        beta: (4 * C,).
        grid: of the normed input.
        epsilon: of the norm.
    """

    def __init__(
        self, kernels: Kernels, reduction: LinearWeights, gamma: Tensor, beta: Tensor, grid: Grid, epsilon: float = 1e-5
    ) -> None:
        super().__init__(kernels)
        self.outputs, inputs = reduction.codes.shape
        self.channels = inputs // 4
        if self.channels % 16 or self.outputs % 16:
            raise ValueError(f'the integer kernels merge multiples of 16 channels, not {self.channels}')
        by_corner = torch.arange(inputs).view(-1, 4).t().flatten()
        before, after = (None if x is None else x[by_corner] for x in (grid.before, grid.after))
        grid = grid._replace(before=before, after=after)
        gamma, beta = norm_on_grid(gamma[None, by_corner], beta[None, by_corner], (grid,))
        packed = pack_linear(reduction._replace(codes=reduction.codes[:, by_corner]), (grid, grid))
        norm = (self.keep(value[0], 'norm', (inputs,)) for value in (gamma, beta))
        self._merging = Merging(self.linear(packed, 'reduction'), *norm, top(grid), epsilon, self.channels)

    def run(self, x: Tensor, size: Size, threads: int | None = None) -> tuple[Tensor, Size]:
        """(B, H * W, C) float32 with (H, W) to (B, H' * W', N) with (H', W')."""
        height, width = size
        x = checked(x, 'stream', ('batch', height * width, self.channels))
        merged = (height + 1) // 2, (width + 1) // 2
        out = MAPS.take(len(x), merged[0] * merged[1], self.outputs)
        self.kernels.call(
            'merge',
            *(ctypes.addressof(self._merging), x.data_ptr(), x.numel(), len(x), height, width),
            *(out.data_ptr(), out.numel(), threads or torch.get_num_threads()),
        )
        return out, merged


class IntegerEmbedding(Operation):
    """Patch embedding: codes of the image, product, norm.

    Args:
        kernels: from ``load``.
        projection: (N, in_channels * patch * patch), a convolution's weights flattened.
        grid: of the image.
        gamma: (N,) of the norm; None without.
        beta: (N,).
        patch: side and stride of a patch.
        epsilon: of the norm.
    """

    def __init__(
        self,
        kernels: Kernels,
        projection: LinearWeights,
        grid: Grid,
        gamma: Tensor | None,
        beta: Tensor | None,
        patch: int = 4,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__(kernels)
        self.patch, self._grid = patch, grid
        self.outputs, inputs = projection.codes.shape
        self.in_channels = inputs // patch**2
        if self.outputs % 16:
            raise ValueError(f'the integer kernels embed into multiples of 16 channels, not {self.outputs}')
        before = torch.zeros(inputs) if grid.before is None else grid.before
        norm = (None if x is None else self.keep(x.float(), 'norm', (self.outputs,)) for x in (gamma, beta))
        self._embedding = Embedding(
            self.linear(pack_linear(projection, (grid, grid)), 'projection'),
            *(1 / grid.scale, grid.zero_point, top(grid)),
            self.keep(before[:: patch**2].float(), 'offset before rounding', (self.in_channels,)),
            *norm,
            *(epsilon, self.in_channels, patch),
        )

    def run(self, images: Tensor, threads: int | None = None) -> tuple[Tensor, Size]:
        """(B, in_channels, H, W) float32 to (B, H' * W', N) with (H', W'); odd sizes are padded with zeros."""
        images = checked(images, 'images', ('batch', self.in_channels, 'height', 'width'))
        batch, _, height, width = images.shape
        size = -(-height // self.patch), -(-width // self.patch)
        out = MAPS.take(batch, size[0] * size[1], self.outputs)
        self.kernels.call(
            'embed',
            *(ctypes.addressof(self._embedding), images.data_ptr(), images.numel(), batch, height, width),
            *(out.data_ptr(), out.numel(), threads or torch.get_num_threads()),
        )
        return out, size

    def byte_codes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What bytes of each channel become, and what padding does.

        Args:
            values: (in_channels, 256) float32, the normalised value of each byte.

        Returns:
            Codes (in_channels, 256) and (in_channels,), uint8; padding is 0 behind normalising.
        """
        values = F.pad(checked(values, 'values of bytes', (self.in_channels, 256)), (0, 1))
        grid, places = self._grid, self.patch**2
        grid = grid._replace(before=None if grid.before is None else grid.before[::places, None])
        codes = (steps_of(values, grid) + grid.zero_point).to(torch.uint8)
        return codes[:, :256].contiguous(), codes[:, 256].contiguous()

    def run_bytes(
        self,
        images: Sequence[Tensor],
        size: Size,
        codes: tuple[Tensor, Tensor],
        reverse_channels: bool = False,
        threads: int | None = None,
    ) -> tuple[Tensor, Size]:
        """Embed images as they come from a file.

        Args:
            images: (in_channels, h, w) uint8 each, in any layout; none is larger than ``size``.
            size: (H, W) of the batch; what lies outside of an image is padding.
            codes: from :meth:`byte_codes`.
            reverse_channels: whether the channels of images run the other way.
            threads: threads; torch's number if not given.

        Returns:
            (B, H' * W', N) with (H', W').
        """
        table = checked(codes[0], 'codes of bytes', (self.in_channels, 256), torch.uint8)
        blank = checked(codes[1], 'codes of padding', (self.in_channels,), torch.uint8)
        found = (ByteImage * len(images))(*(self._byte_image(x, size, reverse_channels) for x in images))
        patches = -(-size[0] // self.patch), -(-size[1] // self.patch)
        out = MAPS.take(len(images), patches[0] * patches[1], self.outputs)
        self.kernels.call(
            'embed_bytes',
            *(ctypes.addressof(self._embedding), ctypes.addressof(found), table.data_ptr(), blank.data_ptr()),
            *(len(images), *size, out.data_ptr(), out.numel(), threads or torch.get_num_threads()),
        )
        return out, patches

    def _byte_image(self, image: Tensor, size: Size, reverse_channels: bool) -> ByteImage:
        checked(image[..., :0], 'an image', (self.in_channels, 'height', 0), torch.uint8)
        height, width = image.shape[1:]
        if height > size[0] or width > size[1]:
            raise ValueError(f'an image of {height} x {width} pixels is larger than its batch, {size[0]} x {size[1]}')
        first, step = image.data_ptr(), image.stride(0)
        if reverse_channels:
            first, step = first + (self.in_channels - 1) * step, -step
        return ByteImage(first, height, width, step, *image.stride()[1:])


class OutputCodes(Operation):
    """An output norm whose results are codes, channels last.

    Args:
        kernels: from ``load``.
        gamma: (C,) of the norm.
        beta: (C,).
        grid: of the codes, without an offset before rounding.
        epsilon: of the norm.
    """

    def __init__(self, kernels: Kernels, gamma: Tensor, beta: Tensor, grid: Grid, epsilon: float = 1e-5) -> None:
        super().__init__(kernels)
        self.channels, self.top, self.epsilon = gamma.numel(), top(grid), epsilon
        if self.channels % 16:
            raise ValueError(f'the kernels norm multiples of 16 channels, not {self.channels}')
        on_grid = norm_on_grid(gamma[None], beta[None], (grid,))
        self._norm = [self.keep(value[0], 'norm', (self.channels,)) for value in on_grid]

    def run(self, x: Tensor, size: Size, threads: int | None = None) -> Tensor:
        """(B, H * W, C) float32 to (B, C, H, W) uint8."""
        x = checked(x, 'stream', ('batch', size[0] * size[1], self.channels))
        out = torch.empty(len(x), *size, self.channels, dtype=torch.uint8)
        self.kernels.call(
            'output_codes',
            *(x.data_ptr(), *self._norm, self.epsilon, self.top, x.shape[0] * x.shape[1], self.channels),
            *(out.data_ptr(), out.numel(), threads or torch.get_num_threads()),
        )
        return out.permute(0, 3, 1, 2)


def output_norm(
    kernels: Kernels,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    size: Size,
    epsilon: float = 1e-5,
    threads: int | None = None,
) -> Tensor:
    """LayerNorm of (B, H * W, C) float32, as a map (B, C, H, W)."""
    x = checked(x, 'stream', ('batch', size[0] * size[1], 'channels'))
    batch, length, channels = x.shape
    if channels % 16:
        raise ValueError(f'the kernels norm multiples of 16 channels, not {channels}')
    gamma, beta = (checked(value, 'norm', (channels,)) for value in (gamma, beta))
    out = MAPS.take(batch, channels, *size)
    kernels.call(
        'output',
        *(x.data_ptr(), gamma.data_ptr(), beta.data_ptr(), epsilon, batch, length, channels),
        *(out.data_ptr(), out.numel(), threads or torch.get_num_threads()),
    )
    return out
