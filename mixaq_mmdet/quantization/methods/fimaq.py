"""FIMA-Q (CVPR 2025): block reconstruction under a low-rank Fisher matrix of the whole model's loss."""

from __future__ import annotations

from typing import Any

from mixaq_mmdet.checks import check_positive

from ...registry import QUANT_METHODS
from ..reconstruction import BlockLoss, LowRankFisher
from .reconstructed import ReconstructedMethod


@QUANT_METHODS.register_module()
class FIMAQ(ReconstructedMethod):
    """Post-training quantization of FIMA-Q, for both branches.

    Args:
        rows: of the Fisher matrix, which are gathered while training goes on.
    """

    uses_gradients = True

    def __init__(self, rows: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = check_positive(rows, 'quant.rows', usual=5)

    def loss(self) -> BlockLoss:
        return LowRankFisher(self.rows)
