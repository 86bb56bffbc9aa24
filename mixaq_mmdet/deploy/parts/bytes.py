"""Images as bytes: normalising is a look into a table in front of the embedding, and padding is a code of its own.

mmdet normalises first and pads with 0 then, a value that no byte is normalised to. So a batch of bytes knows the size
of each image: inside there is content, outside there is the code of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.model import ImgDataPreprocessor, stack_batch
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin

Size = tuple[int, int]
_BYTES = 256


class Normalization(NamedTuple):
    """How a data preprocessor makes floats of bytes.

    Attributes:
        mean: of each channel, or one for all.
        std: likewise.
        reverse_channels: whether the channels of an image are turned around first.
        divisor: of the sides of a batch.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    reverse_channels: bool = False
    divisor: int = 1

    def values(self, channels: int) -> Tensor:
        """(channels, 256) float32: what each byte becomes, by the data preprocessor's own operations."""
        mean, std = (torch.tensor(numbers).view(-1, 1) for numbers in (self.mean, self.std))
        return ((torch.arange(_BYTES).float() - mean) / std).expand(channels, _BYTES)


class ByteImages:
    """A batch of images that are not normalised yet, in the place of its tensor.

    Args:
        images: (C, h, w) uint8 each, in any layout.
        normalization: what has not been done yet.
    """

    def __init__(self, images: Sequence[Tensor], normalization: Normalization) -> None:
        self.images, self.normalization = tuple(images), normalization
        step = normalization.divisor
        sides = zip(*(image.shape[1:] for image in self.images), strict=True)
        self.size: Size = tuple(-(-max(side) // step) * step for side in sides)  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> OneOfBatch:
        """What mmdet asks for the size of its batch."""
        return OneOfBatch(self.shape[1:])

    @property
    def shape(self) -> torch.Size:
        """(B, C, H, W) with padding."""
        return torch.Size((len(self.images), len(self.images[0]), *self.size))

    @property
    def device(self) -> torch.device:
        """Of the bytes."""
        return self.images[0].device

    def floats(self) -> Tensor:
        """(B, C, H, W) float32: exactly what the data preprocessor would have made."""
        values = self.normalization.values(len(self.images[0])).to(self.device)
        images = [image.flip(0) if self.normalization.reverse_channels else image for image in self.images]
        channels = torch.arange(len(values), device=self.device).view(-1, 1, 1)
        return stack_batch([values[channels, image.long()] for image in images], self.normalization.divisor)

    def content(self, patch: int) -> Tensor:
        """(B, ceil(H / patch), ceil(W / patch)) float32, 1 where a patch sees an image and 0 in the padding."""
        content = torch.zeros(len(self), *(-(-side // patch) for side in self.size), device=self.device)
        for place, image in zip(content, self.images, strict=True):
            place[: -(-image.shape[1] // patch), : -(-image.shape[2] // patch)] = 1
        return content


class OneOfBatch:
    """An image of a batch, as far as its size goes."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def size(self) -> torch.Size:
        """(C, H, W)."""
        return self.shape


def normalization_of(preprocessor: Any) -> tuple[Normalization | None, str]:
    """What a data preprocessor does to images, or None and why bytes cannot stand for it."""
    if not isinstance(preprocessor, DetDataPreprocessor) or (
        type(preprocessor).forward not in (DetDataPreprocessor.forward, ByteDataPreprocessor.forward)
    ):
        return None, f"{type(preprocessor).__name__} is not mmdet's DetDataPreprocessor"
    if not preprocessor._enable_normalize:
        return None, 'mean and std are not set: a black pixel would be padding'
    if preprocessor.pad_value != 0:
        return None, f'pad_value={preprocessor.pad_value} is not 0'
    mean, std = (tuple(x.flatten().tolist()) for x in (preprocessor.mean, preprocessor.std))
    return Normalization(mean, std, preprocessor._channel_conversion, preprocessor.pad_size_divisor), ''


class _KeepBytes(ImgDataPreprocessor):
    """In the place of mmengine's float pass, behind mmdet's class: it hands bytes on."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """A batch of ``inputs`` and ``data_samples``; what is no byte on a CPU is done by mmengine."""
        images = data['inputs']
        normalization, _ = normalization_of(self)
        plain = not training and self.device.type == 'cpu' and len(images) > 0
        if normalization is None or not plain or not all(_is_image(x, len(normalization.mean)) for x in images):
            return super().forward(data, training)
        data = self.cast_data(data)
        return {**data, 'inputs': ByteImages(data['inputs'], normalization)}


class ByteDataPreprocessor(DetDataPreprocessor, _KeepBytes):
    """mmdet's data preprocessor whose images stay bytes in test mode."""


def _is_image(x: Tensor, channels: int) -> bool:
    return (
        x.dtype == torch.uint8 and x.device.type == 'cpu' and x.dim() == 3 and channels in (1, len(x)) and x.numel() > 0
    )


def use_bytes(detector: nn.Module) -> str:
    """Let a detector's images stay bytes up to its backbone, in place, if both can.

    Returns:
        One line that says so, or why not.
    """
    preprocessor: Any = detector.data_preprocessor
    if not (isinstance(detector.backbone, TwoBranchSwin) and detector.backbone.takes_bytes):
        return f'images as floats: {type(detector.backbone).__name__} takes no bytes'
    normalization, reason = normalization_of(preprocessor)
    if normalization is None:
        return f'images as floats: {reason}'
    preprocessor.__class__ = ByteDataPreprocessor
    return 'images as bytes: normalised by a table in the embedding'
