"""GLF-Q (2026): block reconstruction under the error of the whole model's results and the block's own."""

from __future__ import annotations

from ...registry import QUANT_METHODS
from ..reconstruction import BlockLoss, GlobalAndLocal
from .reconstructed import SMALL, ReconstructedMethod


@QUANT_METHODS.register_module()
class GLFQ(ReconstructedMethod):
    """Post-training quantization of GLF-Q, for both branches; its published budget is as small as a small one."""

    uses_gradients = True
    published = SMALL

    def loss(self) -> BlockLoss:
        return GlobalAndLocal()
