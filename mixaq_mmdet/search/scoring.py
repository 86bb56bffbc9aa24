"""What a candidate is worth: AP on the search images, its feature error against the float backbone, its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mixaq_mmdet.analysis.latency import LatencyTable
from mixaq_mmdet.engine.calibration import uncalibrated
from mixaq_mmdet.engine.calibration.inputs import TensorStore
from mixaq_mmdet.engine.detectors import load_detector
from mixaq_mmdet.engine.evaluate import evaluate
from mixaq_mmdet.models.backbone_cost import CostMeter, backbone_bops
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.quantization import NotCalibratedError, quantizer_mode

from .history import Scores
from .images import usual_size
from .space import Candidate


def load_searched(cfg: Config, checkpoint: str | Path) -> nn.Module:
    """The detector of a config with calibrated weights, in eval mode on this process's device.

    Raises:
        NotCalibratedError: for a checkpoint without ranges.
    """
    detector: Any = load_detector(cfg, checkpoint, get_device())
    if not isinstance(getattr(detector, 'backbone', None), TwoBranchSwin):
        raise ValueError(
            "model.backbone is not a TwoBranchSwin, so it has no ratios to search; set type='TwoBranchSwin'"
        )
    missing = uncalibrated(detector)
    if missing:
        raise NotCalibratedError(f'{missing[0].name} of checkpoint {str(checkpoint)!r}')
    return detector


class DetectorScorer:
    """Scores candidates by running a loaded detector over the search images.

    Under torchrun each rank runs its share of the images and all get the same scores.

    Args:
        detector: with a TwoBranchSwin backbone.
        loader: this rank's share of the search images.
        quality: 'map' or 'proxy'.
    """

    def __init__(self, detector: Any, loader: DataLoader, quality: str) -> None:
        if quality == 'proxy' and detector.backbone.stored_bits is not None:
            raise ValueError(
                '--objectives proxy compares with the float backbone, which a converted one does not hold; use map, or '
                'search with the config it was converted from'
            )
        self.detector = detector
        self.backbone: TwoBranchSwin = detector.backbone
        self.loader = loader
        self.quality = quality
        self._inputs = TensorStore()
        self._references: list[list[Tensor]] = []

    def __call__(self, candidate: Candidate) -> Scores:
        """The expensive scores."""
        with self.backbone.at_ratios(candidate.low_ratios, candidate.prune_ratios):
            if self.quality == 'proxy':
                return {'proxy': self.feature_error()}
            metrics = evaluate(self.detector, dataloader=self.loader).metrics
        scores = {'map': 100 * metrics['coco/bbox_mAP']}
        if 'coco/segm_mAP' in metrics:
            scores['mask_map'] = 100 * metrics['coco/segm_mAP']
        return scores

    @torch.no_grad()
    def feature_error(self) -> float:
        """Squared error of the backbone's maps over their squares, mean over levels, against quantizers switched off.

        A fold leaves the float function as it was, so that after PTQ the reference is the float backbone. After QAT it
        is not: trained weights without their quantizers are a model that nobody trained.
        """
        if not self._references:
            self._keep_references()
        levels = len(self.backbone.out_indices)
        sums = torch.zeros(2, levels, dtype=torch.float64)
        for index, references in enumerate(self._references):
            for level, (found, wanted) in enumerate(zip(self.backbone(self._inputs[index]), references, strict=True)):
                sums[0, level] += (found - wanted).double().square().sum().cpu()
                sums[1, level] += wanted.double().square().sum().cpu()
        all_reduce(sums)
        return float((sums[0] / sums[1]).mean())

    def _keep_references(self) -> None:
        with self.backbone.at_ratios(0.0, 0.0), quantizer_mode(self.backbone, 'float'):
            for batch in self.loader:
                inputs = self.detector.data_preprocessor(batch, False)['inputs']
                self._inputs.append(inputs)
                self._references.append(list(self.backbone(inputs)))


class CostModel:
    """The cheap scores: relative bit operations over the search images, and predicted latency.

    Args:
        backbone: whose geometry and bits count.
        sizes: (height, width) of the search images.
        latency: measured table; None leaves latency out.
    """

    def __init__(
        self, backbone: TwoBranchSwin, sizes: Sequence[tuple[int, int]], latency: LatencyTable | None = None
    ) -> None:
        self.backbone = backbone
        self.sizes, self.usual = Counter(sizes), usual_size(sizes)
        self.latency = latency
        self._known: dict[Candidate, Scores] = {}

    def __call__(self, candidate: Candidate) -> Scores:
        """``bops`` (relative, paper's count), ``mean_activation_bits`` and, with a table, ``latency`` in ms."""
        if candidate not in self._known:
            meter = CostMeter()
            for size, number in self.sizes.items():
                meter.settings[(size, candidate.low_ratios, candidate.prune_ratios)] = number
            summary = meter.summary(self.backbone)
            scores = {'bops': summary['relative'], 'mean_activation_bits': summary['mean_activation_bits']}
            if self.latency is not None:
                scores['latency'] = self.latency.predict(candidate.low_ratios, candidate.prune_ratios)
            self._known[candidate] = scores
        return self._known[candidate]

    def realised(self, candidate: Candidate) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Realised low and prune ratios at the most common size."""
        return backbone_bops(self.backbone, self.usual, candidate.low_ratios, candidate.prune_ratios).realised
