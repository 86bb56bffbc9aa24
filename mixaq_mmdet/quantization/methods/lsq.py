"""LSQ (arXiv 1902.08153): learned step sizes for weights and activations, trained with the model."""

from __future__ import annotations

from typing import Any

from ...registry import QUANT_METHODS
from .trained import TrainedMethod

UNSIGNED_ROLES = ('attn', 'fc2_in')


@QUANT_METHODS.register_module()
class LSQ(TrainedMethod):
    """Learned steps: one per activation tensor, with two per-channel offsets, and one per row of a weight."""

    def quantizer_config(self, role: str) -> dict[str, Any]:
        if role == 'weight':
            return {'type': 'Learned', 'weight': True, 'per_channel': self.w_per_channel}
        return {'type': 'Learned', 'unsigned': role in UNSIGNED_ROLES, 'offsets': role != 'attn'}
