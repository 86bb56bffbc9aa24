"""OFQ (arXiv 2302.02210): StatsQ weights, learned steps with two offsets, query-key reparameterisation if asked for.

Its third part, confidence-guided annealing, is a matter of the training: ``engine/hooks/annealing.py``.

Inside blocks each token position of a window has its own steps, resolution-free in window layout, but for the values of
attention, which have a step for each channel of a head; PatchMerging and layers outside the blocks have one step per
tensor. Outputs of GELU and softmax are unsigned; those of softmax have no offsets, so that masked probabilities stay
exactly zero.

With ``qkr=True`` (``quantization/query_key.py``) the keys of an attention are the input of its layer ``qkv``, on that
grid; what is quantized beside it are the products of query and key weights, and the queries that these give.
"""

from __future__ import annotations

from typing import Any

from mixaq_mmdet.checks import check_flag

from ...registry import QUANT_METHODS
from ..roles import BRANCH_ROLES, QUERY_KEY
from .trained import TrainedMethod, is_end

UNSIGNED_ROLES = ('attn', 'fc2_in')
EDGE_WEIGHTS: dict[str, dict[str, Any]] = {'LSQ': {'type': 'Learned', 'weight': True}, 'StatsQ': {'type': 'Statistic'}}


@QUANT_METHODS.register_module()
class OFQ(TrainedMethod):
    """StatsQ weights; learned steps with two per-channel offsets for activations.

    Args:
        edge_weights: grid of the 8-bit weights at both ends of the network, and of those that ``edge_bits`` are of:
            'LSQ', a learned step per row, or 'StatsQ', which cuts them off at 2 mean|W|, however many bits there are.
        v_per_channel: a step for each channel of the values instead of each token position.
        qkr: quantize the product of query and key weights of each head instead of the two. There is no integer form.
        **kwargs: see :class:`Method`.
    """

    earlier = {'edge_weights': 'StatsQ', 'v_per_channel': False, 'qkr': False}
    backbone_options = {**TrainedMethod.backbone_options, 'qkr': 'belongs to window attention'}

    def __init__(self, edge_weights: str = 'LSQ', v_per_channel: bool = True, qkr: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if edge_weights not in EDGE_WEIGHTS:
            raise ValueError(f'quant.edge_weights={edge_weights!r} is unknown; use one of {list(EDGE_WEIGHTS)}')
        self.edge_weights = edge_weights
        self.v_per_channel = check_flag(v_per_channel, 'quant.v_per_channel')
        self.qkr = check_flag(qkr, 'quant.qkr')
        self.reparameterises_queries = self.qkr
        for index, override in enumerate(self.overrides):
            if self.qkr and set(override.get('roles', ())) == {'k'}:
                raise ValueError(
                    f"quant.overrides[{index}].roles=['k'] has no effect with qkr=True: keys are the input of the "
                    "layer qkv; name its role 'qkv_in' instead"
                )

    def roles(self, module_path: str) -> dict[str, dict[str, Any]]:
        roles = super().roles(module_path)
        if self.qkr and module_path.endswith(QUERY_KEY):
            roles.pop('k', None)
        return roles

    def quantizer_config(self, role: str) -> dict[str, Any]:
        if role == 'weight':
            return {'type': 'Statistic', 'per_channel': self.w_per_channel}
        by_channel = role == 'v' and self.v_per_channel
        return {
            'type': 'Learned',
            'unsigned': role in UNSIGNED_ROLES,
            'offsets': role != 'attn',
            'per_token': role in BRANCH_ROLES and not by_channel,
            **({'per_channel': True} if by_channel else {}),
        }

    def grid_of(self, module_path: str, role: str) -> dict[str, Any]:
        grid = super().grid_of(module_path, role)
        at_an_edge = is_end(module_path) or self.edge_bits_of(module_path) is not None
        return {**grid, **EDGE_WEIGHTS[self.edge_weights]} if role == 'weight' and at_an_edge else grid
