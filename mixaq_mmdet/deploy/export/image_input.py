"""The input of an exported graph: a normalised image, or bytes and the size of the image among them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FloatInput(nn.Module):
    """(1, 3, H, W) float32, normalised and padded with zeros: it passes."""

    names = ('image',)
    size: Tensor

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer('size', torch.tensor(shape, dtype=torch.float32))

    def examples(self) -> dict[str, Tensor]:
        """An input of each name."""
        return {'image': torch.randn(1, 3, *self.shape, generator=torch.Generator().manual_seed(0))}

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image and its size (height, width) as floats."""
        return image, self.size


class BytesInput(nn.Module):
    """(1, H, W, 3) uint8 BGR as OpenCV reads it, and ``size`` (2,) int64: height and width of the image in it.

    mmdet pads with zeros behind the normalisation, which no byte becomes, and blank windows are found by them: outside
    of ``size`` the normalised value is 0.

    Args:
        shape: (H, W).
        mean: of the channels, in the order of the network.
        std: likewise.
        to_rgb: whether the network wants RGB.
    """

    names = ('image', 'size')

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, shape: tuple[int, int], mean: Sequence[float], std: Sequence[float], to_rgb: bool) -> None:
        super().__init__()
        self.shape, self.to_rgb = shape, to_rgb
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer('rows', torch.arange(shape[0]).view(1, 1, -1, 1))
        self.register_buffer('columns', torch.arange(shape[1]).view(1, 1, 1, -1))

    def examples(self) -> dict[str, Tensor]:
        """An input of each name."""
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (1, *self.shape, 3), generator=generator, dtype=torch.uint8)
        return {'image': image, 'size': torch.tensor(self.shape)}

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised image (1, 3, H, W) and its size as floats."""
        x = image.permute(0, 3, 1, 2).float()
        if self.to_rgb:
            x = x.flip(1)
        inside = (self.rows < size[0]) & (self.columns < size[1])
        return torch.where(inside, (x - self.mean) / self.std, 0.0), size.float()
