"""OFQ (arXiv 2302.02210), its first step: StatsQ weights and learned steps with two offsets; no QKR, no CGA.

Inside blocks each token position of a window has its own steps, resolution-free in window layout; PatchMerging and
layers outside the blocks have one step per tensor. Outputs of GELU and softmax are unsigned; those of softmax have no
offsets, so that masked probabilities stay exactly zero.
"""

from __future__ import annotations

from typing import Any

from ...registry import QUANT_METHODS
from ..roles import BRANCH_ROLES
from .trained import TrainedMethod

UNSIGNED_ROLES = ('attn', 'fc2_in')


@QUANT_METHODS.register_module()
class OFQ(TrainedMethod):
    """StatsQ weights; learned steps with two per-channel offsets for activations."""

    def quantizer_config(self, role: str) -> dict[str, Any]:
        if role == 'weight':
            return {'type': 'Statistic', 'per_channel': self.w_per_channel}
        return {
            'type': 'Learned',
            'unsigned': role in UNSIGNED_ROLES,
            'offsets': role != 'attn',
            'per_token': role in BRANCH_ROLES,
        }
