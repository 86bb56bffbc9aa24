"""APHQ-ViT (CVPR 2025): block reconstruction under a Hessian that is measured by moving the block's output.

Its other part, which trains the MLPs anew with ReLU in the place of GELU, is left out: it makes another float model.
"""

from __future__ import annotations

from typing import Any

from mixaq_mmdet.checks import check_number

from ...registry import QUANT_METHODS
from ..reconstruction import BlockLoss, PerturbationHessian
from .reconstructed import ReconstructedMethod


@QUANT_METHODS.register_module()
class APHQ(ReconstructedMethod):
    """Post-training quantization of APHQ-ViT, for both branches.

    Args:
        perturbation: how far outputs are moved. Published is 1e-6, by which a float32 number above 16 does not change.
    """

    uses_gradients = True

    def __init__(self, perturbation: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.perturbation = check_number(perturbation, 'quant.perturbation', usual=1e-3, above=True)

    def loss(self) -> BlockLoss:
        return PerturbationHessian(self.perturbation)
