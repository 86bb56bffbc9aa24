"""The bits of a converted backbone, asked for as a quantization method is: bit operations are counted from them."""

from __future__ import annotations

import re
from typing import Any

from mixaq_mmdet.quantization.roles import roles_of

from .state import Header

BF16_BITS = 16
_LAYERS = {'attn.w_msa.qkv': 'qkv', 'attn.w_msa.proj': 'proj', 'ffn.layers.0.0': 'fc1', 'ffn.layers.1': 'fc2'}
_IN_BLOCK = re.compile(r'(stages\.\d+\.blocks\.\d+)\.(.+)')


class StoredBits:
    """Bits by module path of the simulated backbone.

    Args:
        header: of the integer state.
        high: what high windows run as.
    """

    def __init__(self, header: Header, high: str) -> None:
        self.header, self.high = header, high

    def roles(self, path: str) -> dict[str, dict[str, Any]]:
        """{role: {'bits': ..., 'low_bits': ...}} of a layer or an attention product, as ``Method.roles``."""
        found = _IN_BLOCK.fullmatch(path)
        roles = roles_of(path)
        if found is None:
            layer = self.header['layers'][path]
            return {roles[0]: {'bits': layer['bits']}, roles[1]: {'bits': layer['grid']['bits']}}
        block, name = found.groups()
        high, low = self.header['blocks'][block]['grids']
        bits: dict[str, dict[str, Any]] = {}
        for role in roles:
            if role == 'weight':
                bits[role] = {'bits': self.header['layers'][f'{block}.{_LAYERS[name]}']['bits']}
            else:
                own = BF16_BITS if self.high == 'bf16' else high[role]['bits']
                bits[role] = {'bits': own, 'low_bits': low[role]['bits']}
        return bits
