"""Which tensors a layer quantizes: its roles, from its module path."""

from __future__ import annotations

MATMUL_ROLES = {'query_key': ('q', 'k'), 'attention_value': ('attn', 'v')}
_LINEAR_ROLES = {
    'patch_embed.projection': 'patch_in',
    'w_msa.qkv': 'qkv_in',
    'w_msa.proj': 'proj_in',
    'ffn.layers.0.0': 'fc1_in',
    'ffn.layers.1': 'fc2_in',
    'downsample.reduction': 'merge_in',
}
ROLES = ('weight', *_LINEAR_ROLES.values(), 'q', 'k', 'attn', 'v', 'head_in')
QUERY_KEY_VALUE, QUERY_KEY = 'w_msa.qkv', 'w_msa.query_key'
"""How the paths end of the layer that gives queries, keys and values, and of the product of the first two."""
EDGE_ROLES = ('patch_in', 'merge_in')
"""Inputs of the layers between the blocks: the patch embedding and patch merging."""
LAYER_NORM_ROLES = ('qkv_in', 'fc1_in', 'merge_in')
"""Inputs that come straight from a LayerNorm, which a method may fold scales into."""
BRANCH_ROLES = ('qkv_in', 'q', 'k', 'attn', 'v', 'proj_in', 'fc1_in', 'fc2_in')
"""Activations inside two-branch blocks: one quantizer per branch."""


def roles_of(module_path: str) -> tuple[str, ...]:
    """Roles of a layer: ('weight', input role), or the two operands of an attention product.

    Any Linear or Conv2d outside the Swin backbone has the input role 'head_in'.
    """
    for suffix, roles in MATMUL_ROLES.items():
        if module_path.endswith(f'w_msa.{suffix}'):
            return roles
    for suffix, role in _LINEAR_ROLES.items():
        if module_path.endswith(suffix):
            return 'weight', role
    return 'weight', 'head_in'
