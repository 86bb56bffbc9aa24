"""What the float backbone's windows hold: object area by importance rank, and channel ranges of LayerNorm outputs.

Everything is read by forward hooks on the stock Swin while it sees the split's pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mixaq_mmdet.models.window_alignment import stage_inputs
from mixaq_mmdet.windows.geometry import partition, window_grid
from mixaq_mmdet.windows.importance import build_importance, image_keys

from ..intervals import interval_of, mean_over_images

if TYPE_CHECKING:
    from ..worker import Context

RANKINGS = {'L2': 'L2', 'Std': 'Std', 'random': {'type': 'Random', 'seed': 0}}


class ObjectShare:
    """Object area in the top half of a stage's windows, image by image."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.rankings = {name: build_importance(spec) for name, spec in RANKINGS.items()}
        self.top: dict[str, list[float]] = {name: [] for name in (*RANKINGS, 'best')}
        self.area: list[float] = []
        self.chance: list[float] = []

    def see(self, stream: Tensor, mask: Tensor, keys: list[int]) -> None:
        """Take in one image.

        Args:
            stream: (1, H, W, C) residual stream entering the stage.
            mask: (rows, columns) bool, object pixels of the padded network input.
            keys: of the image, for the random ranking.
        """
        height, width = stream.shape[1:3]
        if mask.shape[0] % height or mask.shape[1] % width:
            raise ValueError(f'input of {tuple(mask.shape)} pixels does not divide into {height} x {width} tokens')
        per_token = mask.float().view(height, mask.shape[0] // height, width, mask.shape[1] // width).sum(dim=(1, 3))
        area = partition(per_token[None, ..., None], self.window).sum(dim=(2, 3))[0]
        real = window_grid(height, width, self.window, 0).real
        half = len(area) - len(area) // 2
        for name, ranking in self.rankings.items():
            tokens = partition(ranking.token_map(stream, keys), self.window)
            order = torch.sort(ranking(tokens, real)[0], descending=True, stable=True).indices
            self.top[name].append(area[order[:half]].sum().item())
        self.top['best'].append(area.sort(descending=True).values[:half].sum().item())
        self.area.append(area.sum().item())
        self.chance.append(area.sum().item() * half / len(area))

    def summary(self) -> dict[str, Any]:
        """Shares of the whole set's object area, with intervals over images."""
        columns = [*self.top.values(), self.area, self.chance]
        points, draws = mean_over_images(np.array(columns).T)
        share = {
            name: _ratio(points[i], points[-2], draws[:, i], draws[:, -2], len(self.area))
            for i, name in enumerate(self.top)
        }
        return {**share, 'against_chance': _ratio(points[0], points[-1], draws[:, 0], draws[:, -1], len(self.area))}


class ChannelRange:
    """Range of every channel of a LayerNorm's output."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """The forward hook; output is (..., channels)."""
        tokens = output.detach().flatten(0, -2)
        low, high = tokens.amin(dim=0), tokens.amax(dim=0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def ratio(self) -> float:
        """Largest range over the median range of the channels."""
        if self.low is None or self.high is None:
            raise ValueError('no LayerNorm output was seen; give at least one image')
        ranges = self.high - self.low
        return (ranges.max() / ranges.median()).item()


def layer_norms(backbone: nn.Module) -> Iterator[tuple[int, str, nn.Module]]:
    """(stage, name, module) of the LayerNorms that feed qkv, fc1 and PatchMerging's reduction."""
    for number, stage in enumerate(backbone.stages, 1):
        for index, block in enumerate(stage.blocks):
            yield number, f'block {index} qkv', block.norm1
            yield number, f'block {index} fc1', block.norm2
        if stage.downsample is not None:
            yield number, 'merging', stage.downsample.norm


@contextmanager
def hooked(backbone: nn.Module) -> Iterator[tuple[list[Tensor], list[tuple[int, str, ChannelRange]]]]:
    """While entered, the list receives each stage's input as (1, H, W, C), and the ranges follow the LayerNorms."""
    ranges = [(stage, name, ChannelRange()) for stage, name, _ in layer_norms(backbone)]
    handles = [
        norm.register_forward_hook(follower)
        for (_, _, norm), (_, _, follower) in zip(layer_norms(backbone), ranges, strict=True)
    ]
    try:
        with stage_inputs(backbone) as streams:
            yield streams, ranges
    finally:
        for handle in handles:
            handle.remove()


def object_mask(sample: Any, size: torch.Size) -> Tensor:
    """(rows, columns) bool: object pixels, padded at the bottom and right as the input is."""
    masks = torch.from_numpy(sample.gt_instances.masks.to_ndarray()).bool()
    if tuple(masks.shape[-2:]) != tuple(sample.img_shape[:2]):
        raise ValueError('masks and input differ in size; load annotations after resizing in the test pipeline')
    padded = torch.zeros(tuple(size), dtype=torch.bool)
    padded[: masks.shape[-2], : masks.shape[-1]] = masks.any(dim=0)
    return padded


@torch.no_grad()
def measure(context: Context) -> dict[str, Any]:
    """Object shares and channel ranges of a float detector on its test split."""
    from mixaq_mmdet.engine.detectors import load_detector
    from mixaq_mmdet.engine.evaluate import build_dataloader

    detector = load_detector(context.cfg, context.checkpoint)
    loader = build_dataloader(context.cfg.test_dataloader)
    shares: list[ObjectShare] = []
    with hooked(detector.backbone) as (streams, ranges):
        for batch in loader:
            data = detector.data_preprocessor(batch, False)
            if len(data['inputs']) != 1:
                raise ValueError('test_dataloader.batch_size must be 1 here; another one pads images of unequal size')
            streams.clear()
            detector.backbone(data['inputs'])
            mask = object_mask(data['data_samples'][0], data['inputs'].shape[-2:])
            keys = image_keys(data['inputs'])
            shares = shares or [ObjectShare(detector.backbone.stages[0].blocks[0].attn.window_size) for _ in streams]
            for share, stream in zip(shares, streams, strict=True):
                share.see(stream, mask, keys)
    return {
        'images': len(loader.dataset),
        'extras': {
            'object_share': [share.summary() for share in shares],
            'channel_range_ratio': [
                {'stage': stage, 'layer': name, 'ratio': round(found.ratio(), 3)} for stage, name, found in ranges
            ],
        },
    }


def _ratio(above: float, below: float, draws: np.ndarray, draws_below: np.ndarray, images: int) -> dict[str, Any]:
    return interval_of(np.array([above / below]), (draws / draws_below)[None], images=images).as_dict()
