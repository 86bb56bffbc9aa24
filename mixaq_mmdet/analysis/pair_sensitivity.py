"""What it costs to run one block pair's windows low, or not at all, alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mixaq_mmdet.engine.damaged_images import naming_images
from mixaq_mmdet.engine.evaluate import evaluate
from mixaq_mmdet.engine.progress import counted_images
from mixaq_mmdet.reporting.figures import COLOURS, MARKERS

from .inspection import two_branch


def one_pair(pairs: int, pair: int, ratio: float) -> tuple[float, ...]:
    """Ratios that are zero but for one pair."""
    return tuple(ratio if number == pair else 0.0 for number in range(pairs))


class FeatureError:
    """Relative squared error of the backbone's outputs against those with every window high, in percent."""

    unit = 'squared error of features (% of signal)'

    def __init__(self, detector: Any, loader: DataLoader) -> None:
        self.images = [detector.data_preprocessor(batch, False)['inputs'] for batch in loader]
        self.reference = self._outputs(detector)

    @torch.no_grad()
    def _outputs(self, detector: Any) -> list[tuple[Tensor, ...]]:
        return [detector.backbone(images) for images in self.images]

    def __call__(self, detector: nn.Module) -> float:
        """Mean over images and stages."""
        found = []
        for outputs, reference in zip(self._outputs(detector), self.reference, strict=True):
            for out, ref in zip(outputs, reference, strict=True):
                found.append(float((out - ref).square().sum() / ref.square().sum().clamp(min=1e-30)))
        return 100 * sum(found) / len(found)


class LossOfAP:
    """Loss of box AP, in points, against every window high."""

    unit = 'loss of box AP (points)'

    def __init__(self, detector: Any, loader: DataLoader) -> None:
        self.loader = loader
        self.reference = self._ap(detector)

    def _ap(self, detector: nn.Module) -> float:
        return 100 * evaluate(detector, dataloader=self.loader).metrics['coco/bbox_mAP']

    def __call__(self, detector: nn.Module) -> float:
        return self.reference - self._ap(detector)


SCORES: dict[str, type[FeatureError] | type[LossOfAP]] = {'error': FeatureError, 'ap': LossOfAP}


def pair_sensitivity(
    detector: nn.Module, loader: DataLoader, ratios: Sequence[float], score: str, pruned: bool = True
) -> dict[str, list[list[float]]]:
    """``result[tier][pair][ratio index]``, tiers 'low' and 'pruned'; the ratios of the detector are put back."""
    if score not in SCORES:
        raise ValueError(f'--score {score!r} is unknown; use one of {sorted(SCORES)}')
    backbone: Any = two_branch(detector)
    tiers = ('low', 'pruned')[: 1 + pruned]
    runs = 1 + len(tiers) * backbone.num_pairs * len(ratios)
    images = len(loader.sampler)  # type: ignore[arg-type]

    def measured(tier: str, pair: int, ratio: float) -> float:
        own = one_pair(backbone.num_pairs, pair, ratio)
        with backbone.at_ratios(own if tier == 'low' else 0.0, own if tier == 'pruned' else 0.0):
            return judge(detector)

    with naming_images(loader.dataset), counted_images('sensitivity of pairs', backbone, runs * images):
        with backbone.at_ratios(0.0, 0.0):
            judge = SCORES[score](detector, loader)
        pairs = range(backbone.num_pairs)
        return {tier: [[measured(tier, pair, ratio) for ratio in ratios] for pair in pairs] for tier in tiers}


def draw_sensitivity(figure: Any, arms: dict[str, list[list[float]]], ratios: Sequence[float], unit: str) -> None:
    """A panel for each arm (low bits, pruned), a line for each pair."""
    figure.set_size_inches(4.4 * len(arms) + 1.4, 3.8)
    axes = figure.subplots(1, len(arms), squeeze=False, sharey=False)[0]
    for axis, (name, rows) in zip(axes, arms.items(), strict=True):
        for pair, row in enumerate(rows):
            style = {'color': COLOURS[pair % 6], 'marker': MARKERS[pair % 6], 'ls': '-' if pair < 6 else '--'}
            axis.plot(ratios, row, ms=5, label=f'pair {pair + 1}', **style)
        axis.set(title=name, xlabel='ratio of windows in one pair', ylabel=unit)
        axis.grid(alpha=0.3)
    # beside the panels: no corner of them is free for sure
    axes[-1].legend(fontsize=8, frameon=False, loc='center left', bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
