"""Signal to quantization noise of windows at the end of each stage: where objects are, and where the score is high."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mixaq_mmdet.engine.damaged_images import naming_images
from mixaq_mmdet.engine.progress import watched
from mixaq_mmdet.models.stage_windows import Ranking, StageRecord
from mixaq_mmdet.quantization.quantizers.base import quantizer_mode
from mixaq_mmdet.reporting.figures import COLOURS
from mixaq_mmdet.windows.geometry import partition

from .inspection import two_branch

PLACES = ('all', 'foreground', 'background', 'important half', 'other half')
_TINY = 1e-12


class StageOutputs:
    """Forward hooks that keep each stage's output as (B, H, W, C)."""

    def __init__(self, backbone: Any) -> None:
        self.maps: list[Tensor] = []
        self.handles = [stage.register_forward_hook(self._keep) for stage in backbone.stages]

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        tokens, size = output[2], output[3]
        self.maps.append(tokens.detach().view(len(tokens), *size, -1))

    def __enter__(self) -> StageOutputs:
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self.handles:
            handle.remove()


def object_share(sample: Any, size: tuple[int, int], tokens: tuple[int, int], window: int) -> Tensor:
    """Share of object pixels in each window, (windows,), of a map of ``tokens`` over an input of ``size`` pixels."""
    mask = torch.zeros(size)
    found = sample.gt_instances.masks.to_ndarray()
    if len(found):
        objects = torch.from_numpy(found).any(dim=0).float()
        mask[: objects.shape[0], : objects.shape[1]] = objects
    per_token = nn.functional.adaptive_avg_pool2d(mask[None, None], tokens)[0, 0]
    return partition(per_token[None, ..., None], window)[0, :, :, 0].mean(dim=1)


def window_sqnr(reference: Tensor, found: Tensor, window: int) -> Tensor:
    """dB of each window, (B, windows), from maps (B, H, W, C)."""
    signal = partition(reference, window).square().sum(dim=(2, 3))
    noise = partition(found - reference, window).square().sum(dim=(2, 3))
    return 10 * torch.log10(signal.clamp(min=_TINY) / noise.clamp(min=_TINY))


@torch.no_grad()
def sqnr_by_stage(detector: Any, loader: DataLoader) -> list[dict[str, float]]:
    """Mean dB over windows for each stage: all, weighted by the share that objects (or none) cover, by importance.

    The reference is the same model with its quantizers passing values on, and with every window high in both.
    """
    backbone = two_branch(detector)
    totals = np.zeros((len(backbone.stages), len(PLACES), 2))
    with backbone.at_ratios(0.0, 0.0), naming_images(loader.dataset):
        for batch in watched('SQNR of windows', loader):
            data = detector.data_preprocessor(batch, False)
            with StageOutputs(backbone) as quantized:
                backbone(data['inputs'])
            with (
                StageOutputs(backbone) as plain,
                quantizer_mode(backbone, 'float'),
                backbone.record_windows() as records,
            ):
                backbone(data['inputs'])
            _add(totals, quantized.maps, plain.maps, data, records)
    return [
        {place: float(value / weight) if weight else float('nan') for place, (value, weight) in zip(PLACES, row)}  # noqa: B905
        for row in totals
    ]


def important_half(ranking: Ranking) -> Tensor:
    """(B, windows) 1 for the better half of an image's windows by their stage's ranking, those of padding left out."""
    place = ranking.order.argsort(dim=1)
    real = (~ranking.blank).sum(dim=1, keepdim=True)
    return (place < (real + 1) // 2).float()


def _add(totals: np.ndarray, found: list[Tensor], plain: list[Tensor], data: dict, records: list[StageRecord]) -> None:
    height, width = data['inputs'].shape[-2:]
    for stage, (quantized, reference, record) in enumerate(zip(found, plain, records, strict=True)):
        window = record.window_size
        decibels, important = window_sqnr(reference, quantized, window), important_half(record.regular)
        for image, sample in enumerate(data['data_samples']):
            share = object_share(sample, (height, width), (reference.shape[1], reference.shape[2]), window)
            half = important[image]
            for place, weight in enumerate((torch.ones_like(share), share, 1 - share, half, 1 - half)):
                totals[stage, place] += [float((weight * decibels[image]).sum()), float(weight.sum())]


def draw_sqnr(figure: Any, models: dict[str, list[dict[str, float]]]) -> None:
    """Bars for each stage: a panel for each place, a bar for each model."""
    figure.set_size_inches(15, 3.4)
    axes = figure.subplots(1, len(PLACES), sharey=True)
    width = 0.8 / len(models)
    for axis, place in zip(axes, PLACES, strict=True):
        for number, (name, stages) in enumerate(models.items()):
            at = np.arange(len(stages)) + (number - (len(models) - 1) / 2) * width
            axis.bar(at, [stage[place] for stage in stages], width * 0.92, color=COLOURS[number], label=name)
        axis.set_xticks(range(len(stages)), [f'stage {index + 1}' for index in range(len(stages))], fontsize=8)
        axis.set_title(place, fontsize=9)
        axis.grid(axis='y', alpha=0.3)
    axes[0].set_ylabel('SQNR (dB, mean over windows)')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='lower center', ncols=len(models), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
