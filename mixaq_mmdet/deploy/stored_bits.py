"""The bits of a converted backbone, asked for as a quantization method is: bit operations are counted from them."""

from __future__ import annotations

from typing import Any

from mixaq_mmdet.quantization.roles import BRANCH_ROLES, roles_of

from .state import Header

BF16_BITS = 16


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
        return {role: self._bits(path, role) for role in roles_of(path)}

    def _bits(self, path: str, role: str) -> dict[str, Any]:
        row = self.header['layers'].get(path)
        if role == 'weight':
            return {'bits': row['bits']}
        grids = self.header['blocks'][path.partition('.attn.')[0]]['grids'][role] if row is None else row['input']
        keys = {'high': 'bits', 'low': 'low_bits'}
        bits = {keys[branch]: grid['bits'] for branch, grid in grids.items()}
        return {**bits, 'bits': BF16_BITS} if self.high == 'bf16' and role in BRANCH_ROLES else bits
