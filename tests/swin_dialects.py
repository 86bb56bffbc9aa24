"""Small Swin Transformers written from the definitions of other code bases, to test checkpoint conversion by numbers.

``MicrosoftSwin`` follows the classification repository (names, concatenated patch merging, windows never larger than
the map, no shift where one window covers the map, one final norm and a linear head). ``output_norms=True`` is the
detection variant of Swin-Transformer-Object-Detection: padded maps, a norm for every stage's output, no head.
``mmcv_names`` renames to what mmpretrain and mmdet write, with the merged channels in ``nn.Unfold`` order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')
        place = torch.stack((rows.flatten(), columns.flatten()))
        offset = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer('relative_position_index', offset[0] * (2 * window - 1) + offset[1])
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """windows: (batch * windows, tokens, dim); mask: (windows, tokens, tokens) or None."""
        count, tokens, dim = windows.shape
        query, key, value = self.qkv(windows).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = query * self.scale @ key.transpose(-2, -1)
        scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, mask.shape[0], self.heads, tokens, tokens) + mask[:, None]
            scores = scores.view(count, self.heads, tokens, tokens)
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shifted: bool, shift_single_window: bool) -> None:
        super().__init__()
        self.window, self.shifted, self.shift_single_window = window, shifted, shift_single_window
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, window)
        self.norm2, self.mlp = nn.LayerNorm(dim), Mlp(dim)

    def forward(self, features: Tensor) -> Tensor:
        """features: (batch, height, width, dim)."""
        _, height, width, dim = features.shape
        size = self.window
        covered = min(height, width) <= size
        shift = size // 2 if self.shifted and (self.shift_single_window or not covered) else 0
        padded = F.pad(self.norm1(features), (0, 0, 0, -width % size, 0, -height % size))
        full_height, full_width = padded.shape[1:3]
        mask = _shift_mask(full_height, full_width, size, shift) if shift else None
        windows = _partition(padded.roll((-shift, -shift), (1, 2)), size).flatten(0, 2).flatten(1, 2)
        attended = self.attn(windows, mask).view(-1, full_height // size, full_width // size, size, size, dim)
        merged = attended.transpose(2, 3).reshape(-1, full_height, full_width, dim).roll((shift, shift), (1, 2))
        features = features + merged[:, :height, :width]
        return features + self.mlp(self.norm2(features))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * dim, 2 * dim, bias=False), nn.LayerNorm(4 * dim)

    def forward(self, features: Tensor) -> Tensor:
        features = F.pad(features, (0, 0, 0, features.shape[2] % 2, 0, features.shape[1] % 2))
        quarters = [features[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class Layer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, window: int, last: bool, shift_single_window: bool) -> None:
        super().__init__()
        blocks = [Block(dim, heads, window, bool(index % 2), shift_single_window) for index in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if last else PatchMerging(dim)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, dim, 4, 4), nn.LayerNorm(dim)


class MicrosoftSwin(nn.Module):
    """Returns class scores, or with ``output_norms`` one (batch, channels, height, width) map a stage."""

    def __init__(
        self,
        dim: int = 8,
        depths: tuple[int, ...] = (2, 2, 2, 1),
        heads: tuple[int, ...] = (1, 2, 4, 8),
        window: int = 4,
        num_classes: int = 5,
        output_norms: bool = False,
    ) -> None:
        super().__init__()
        self.output_norms = output_norms
        self.patch_embed = PatchEmbed(dim)
        widths = [dim * 2**stage for stage in range(len(depths))]
        self.layers = nn.ModuleList(
            Layer(width, depth, count, window, stage == len(depths) - 1, output_norms)
            for stage, (width, depth, count) in enumerate(zip(widths, depths, heads, strict=True))
        )
        if output_norms:
            for stage, width in enumerate(widths):
                self.add_module(f'norm{stage}', nn.LayerNorm(width))
        else:
            self.norm, self.head = nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], num_classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        """The (batch, height, width, dim) maps that the stages end with, before any norm."""
        images = F.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
        features = self.patch_embed.norm(self.patch_embed.proj(images).permute(0, 2, 3, 1))
        outputs = []
        for layer in self.layers:
            for block in layer.blocks:
                features = block(features)
            outputs.append(features)
            features = layer.downsample(features) if layer.downsample else features
        return outputs

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        outputs = self.stages(images)
        if not self.output_norms:
            return self.head(self.norm(outputs[-1]).mean((1, 2)))
        return [getattr(self, f'norm{stage}')(out).permute(0, 3, 1, 2) for stage, out in enumerate(outputs)]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, norms included, values that a wrong name or order cannot hide behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))
    model.eval()  # mmdet's and mmpretrain's Swin return nothing here
    return model


def mmcv_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Microsoft's backbone keys, one list entry a rule, and lay out merged patches channel by channel."""
    renamed = {}
    for key, value in state_dict.items():
        for old, new in (
            ('layers.', 'stages.'),
            ('attn.', 'attn.w_msa.'),
            ('mlp.fc1', 'ffn.layers.0.0'),
            ('mlp.fc2', 'ffn.layers.1'),
            ('embed.proj', 'embed.projection'),
        ):
            key = key.replace(old, new, 1)
        if 'downsample' in key:
            channels = value.shape[-1] // 4
            order = [part * channels + channel for channel in range(channels) for part in (0, 2, 1, 3)]
            value = value[..., order]
        renamed[key] = value
    return renamed


def _partition(features: Tensor, size: int) -> Tensor:
    batch, height, width, dim = features.shape
    return features.view(batch, height // size, size, width // size, size, dim).transpose(2, 3)


def _shift_mask(height: int, width: int, size: int, shift: int) -> Tensor:
    """-100 between tokens that are no neighbours before the roll; (windows, tokens, tokens)."""
    regions = torch.zeros(1, height, width, 1)
    slices = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in slices for columns in slices):
        regions[:, rows, columns] = number
    regions = _partition(regions, size).flatten(0, 2).flatten(1)
    return (regions[:, None, :] != regions[:, :, None]).float() * -100
