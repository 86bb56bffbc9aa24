"""AIQViT (arXiv 2502.04628): low-rank compensation of searched rank, focusing attention quantizer, curriculum.

On top of RepQ's ranges and fold, each block is reconstructed (``quantization/reconstruction/``): every linear layer
of a two-branch block and of patch merging runs Q(W) + B A, and the attention probabilities of each branch have an
interval that is learned. Weights and compensation are shared by the branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from mixaq_mmdet.checks import check_count, check_flag, check_number

from ...registry import QUANT_METHODS
from ..compensation import LowRank
from ..layers import QuantLinear
from ..observers import MSERange
from ..quantizers.base import Quantizer, RangeFinder
from ..reconstruction import LowRankReconstruction, LowRankSchedule, compensations, interval_quantizers
from .base import BlockInputs
from .repq import RepQ


@QUANT_METHODS.register_module()
class AIQViT(RepQ):
    """Post-training quantization of AIQViT, for both branches.

    Args:
        ranks: candidate ranks of the compensation. Several are searched per layer, one is fixed, none switches the
            compensation off; 0 among several lets a layer do without.
        focusing: learn an interval for attention probabilities; otherwise RepQ's log-sqrt2.
        curriculum: train on easy images first.
        steps: updates per block, one image each.
        search_steps: pairs of updates (factors, ranks) of the search; 0 takes the largest rank.
        lr: learning rate of the factors.
        interval_lr: of the focusing intervals.
        rank_lr: of the ranks' logits.
        rank_penalty: price of the largest ranks, in units of the block's error before training.
        curriculum_start: share of the images, the easiest, that training begins with.
        curriculum_full: share of the steps after which all images take part.
        seed: of factors and order.
    """

    converts = False

    def __init__(
        self,
        ranks: Sequence[int] = (2, 4, 8, 16),
        focusing: bool = True,
        curriculum: bool = True,
        steps: int = 160,
        search_steps: int = 60,
        lr: float = 1e-3,
        interval_lr: float = 1e-3,
        rank_lr: float = 0.05,
        rank_penalty: float = 0.05,
        curriculum_start: float = 0.25,
        curriculum_full: float = 0.5,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ranks = _checked_ranks(ranks)
        self.focusing = check_flag(focusing, 'quant.focusing')
        self.curriculum = check_flag(curriculum, 'quant.curriculum')
        self.steps = check_count(steps, 'quant.steps')
        self.search_steps = check_count(search_steps, 'quant.search_steps')
        self.lr = check_number(lr, 'quant.lr', usual=1e-3)
        self.interval_lr = check_number(interval_lr, 'quant.interval_lr', usual=1e-3)
        self.rank_lr = check_number(rank_lr, 'quant.rank_lr', usual=0.05)
        self.rank_penalty = check_number(rank_penalty, 'quant.rank_penalty', usual=0.05)
        self.curriculum_start = check_number(curriculum_start, 'quant.curriculum_start', 0, 1, usual=0.25, above=True)
        self.curriculum_full = check_number(curriculum_full, 'quant.curriculum_full', 0, 1, usual=0.5, above=True)
        self.seed = check_count(seed, 'quant.seed')

    def quantizer_config(self, role: str) -> dict[str, Any]:
        return {'type': 'Focusing'} if role == 'attn' and self.focusing else super().quantizer_config(role)

    def range_finder(self, quantizer: Quantizer) -> RangeFinder:
        # where the interval starts from: the least squared error, as nothing is published
        return MSERange() if quantizer.reconstructed else super().range_finder(quantizer)

    def adopt(self, backbone: nn.Module) -> None:
        super().adopt(backbone)
        for layer in backbone.modules():
            if self.ranks and isinstance(layer, QuantLinear) and isinstance(layer.weight_quant, Quantizer):
                layer.compensation = LowRank(layer.in_features, layer.out_features, self.ranks)

    def calibrate(self, block: nn.Module, inputs: BlockInputs) -> dict[str, float]:
        noise = super().calibrate(block, inputs)
        if self._learns(block):
            LowRankReconstruction(block, inputs, self._schedule()).run()
        return noise

    def calibration_steps(self, block: nn.Module, images: int) -> int:
        steps = super().calibration_steps(block, images)
        if not self._learns(block):
            return steps
        searched = any(len(layer.candidates) > 1 for layer in compensations(block))
        return steps + self.steps + self.search_steps * searched

    def _learns(self, block: nn.Module) -> bool:
        return bool(self.steps and (compensations(block) or interval_quantizers(block)))

    def _schedule(self) -> LowRankSchedule:
        return LowRankSchedule(**{field.name: getattr(self, field.name) for field in fields(LowRankSchedule)})


def _checked_ranks(ranks: Any) -> list[int]:
    valid = isinstance(ranks, Sequence) and not isinstance(ranks, str)
    if not valid or any(isinstance(rank, bool) or not isinstance(rank, int) or rank < 0 for rank in ranks):
        raise ValueError(f'quant.ranks={ranks!r} must be a list of whole numbers of at least 0, e.g. [2, 4, 8, 16]')
    return [] if not any(ranks) else sorted(set(ranks))
