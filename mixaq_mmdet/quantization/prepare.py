"""Put a method's quantizers into a model: layers are replaced in place, parameters keep their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..registry import QUANTIZERS, lookup
from .blocks import ProductAttention, SameProduct, WindowBlock
from .layers import (
    BranchQuantizers,
    KeepFloat,
    QuantConvTranspose2d,
    QuantMatmul,
    QuantWeight,
    to_quant_conv2d,
    to_quant_deconvolution,
    to_quant_linear,
)
from .methods import Method, build_method
from .overrides import check_head_options, check_overrides
from .quantizers import Quantizer
from .query_key import QueryKeyLinear, to_query_key
from .roles import BRANCH_ROLES, LAYER_NORM_ROLES, MATMUL_ROLES, QUERY_KEY_VALUE, roles_of
from .state import CONFIG_BUFFER, encode_config

TOKEN_AXIS = {'k': -1}
"""Keys come transposed: (windows, heads, channels, tokens); elsewhere tokens are the last axis but one."""


def prepare(backbone: nn.Module, quant: Mapping[str, Any]) -> Method:
    """Quantize a two-branch backbone according to ``quant``; it stays uncalibrated.

    The method is kept as ``backbone.quant_method`` and the config as a buffer that checkpoints carry.
    """
    method = build_method(quant, 'quant')
    check_overrides(method, replace_layers(backbone, method))
    check_head_options(method, backbone)
    backbone.quant_method = method  # type: ignore[assignment]
    method.adopt(backbone)
    backbone.register_buffer(CONFIG_BUFFER, encode_config(method.config))
    return method


def replace_layers(root: nn.Module, method: Method, prefix: str = '') -> list[str]:
    """Replace every Linear, Conv2d and attention product below ``root`` by what ``method`` says; with its option
    ``deconvolution`` every ConvTranspose2d, too.

    Args:
        root: module whose children are replaced.
        method: gives the roles of each module path; its ``kept_float`` is told of layers that cannot be replaced.
        prefix: path of ``root`` itself, in front of its children's.

    Returns:
        The paths that the method was asked about.
    """
    paths: list[str] = []
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, *([nn.ConvTranspose2d] if method.deconvolution else []))
    window_tokens = {
        f'{path}.': m.window_tokens for path, m in root.named_modules(prefix=prefix) if isinstance(m, WindowBlock)
    }
    for parent_path, parent in list(root.named_modules(prefix=prefix)):
        for name, child in list(parent.named_children()):
            path = f'{parent_path}.{name}' if parent_path else name
            if isinstance(child, kinds) and not isinstance(child, QuantWeight):
                if not _is_plain(child):
                    method.kept_float.append((path, type(child).__name__))
                    continue
                paths.append(path)
                roles = method.roles(path)
                if method.reparameterises_queries and path.endswith(QUERY_KEY_VALUE):
                    setattr(parent, name, _quant_query_key(parent, child, path, roles))
                elif roles:
                    tokens = next((number for block, number in window_tokens.items() if path.startswith(block)), 1)
                    setattr(parent, name, quant_layer(child, path, roles, method.needs_bias(path), tokens))
        if isinstance(parent, ProductAttention):
            for name in MATMUL_ROLES:
                path = f'{parent_path}.{name}'
                paths.append(path)
                setattr(parent, name, _quant_product(parent, name, path, method))
    return paths


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer does what its base class does: no normalised (NormedLinear) or standardised (ConvWS) weights."""
    if isinstance(layer, nn.ConvTranspose2d) and not QuantConvTranspose2d.fits(layer):
        return False
    kind = type(layer)
    if issubclass(kind, SameProduct) or kind.__module__ == 'mmcv.cnn.bricks.wrappers':
        return True
    return kind.forward in (nn.Linear.forward, nn.Conv2d.forward, nn.ConvTranspose2d.forward)


def quant_layer(
    layer: Any, path: str, roles: dict[str, dict[str, Any]], add_bias: bool = False, tokens: int = 1
) -> nn.Module:
    """The quantized twin of a Linear, Conv2d or ConvTranspose2d; a role that is missing stays float.

    ``tokens`` are those of a window, where the layer's input comes in window layout.
    """
    activations = [role for role in roles_of(path) if role != 'weight']
    linear, transposed = isinstance(layer, nn.Linear), isinstance(layer, nn.ConvTranspose2d)
    channels = layer.in_features if linear else layer.in_channels
    outputs = layer.weight[0].numel() if transposed else layer.weight.shape[0]
    weight_quant = _build(roles['weight'], path, 'weight', '', 0, outputs) if 'weight' in roles else KeepFloat()
    inputs = _branches(roles, activations[0], path, -1 if linear else 1, channels, tokens)
    make: Any = to_quant_linear if linear else to_quant_deconvolution if transposed else to_quant_conv2d
    return make(layer, weight_quant, inputs, add_bias)


def _quant_query_key(attention: Any, layer: Any, path: str, roles: dict[str, dict[str, Any]]) -> QueryKeyLinear:
    """The layer of an attention that gives queries by the product of query and key weights."""
    tokens, _, heads = attention.product_sizes
    channels = layer.in_features
    weight_quant: Any = KeepFloat()
    if 'weight' in roles:
        weight_quant = _build(roles['weight'], path, 'weight', '', 0, (heads + 1) * channels)
    return to_query_key(layer, heads, weight_quant, _branches(roles, roles_of(path)[1], path, -1, channels, tokens))


def _quant_product(attention: ProductAttention, name: str, path: str, method: Method) -> nn.Module | None:
    roles = method.roles(path)
    if not roles:
        return None
    tokens, head_channels, heads = attention.product_sizes
    query_channels = heads * head_channels if method.reparameterises_queries else head_channels
    channels = {'q': query_channels, 'k': head_channels, 'attn': tokens, 'v': head_channels}
    operands = [
        (role, _branches(roles, role, path, -2 if role == 'k' else -1, channels[role], tokens))
        for role in MATMUL_ROLES[name]
    ]
    return QuantMatmul(*operands)


def _branches(roles: dict[str, dict[str, Any]], role: str, path: str, axis: int, channels: int, tokens: int) -> Any:
    if role not in roles:
        return KeepFloat()
    config = dict(roles[role])
    token_axis = TOKEN_AXIS.get(role, -2)
    low_bits = config.pop('low_bits', config['bits'])

    def make(branch: str) -> Quantizer:
        bits = low_bits if branch == 'low' else config['bits']
        config_of_branch = {**config, 'bits': bits, 'tokens': tokens, 'token_axis': token_axis}
        return _build(config_of_branch, path, role, branch, axis, channels)

    return BranchQuantizers(make, role in BRANCH_ROLES, token_axis, keep_padding=role in LAYER_NORM_ROLES)


def _build(config: dict[str, Any], path: str, role: str, branch: str, axis: int, channels: int) -> Quantizer:
    options = dict(config)
    name = '.'.join(part for part in (path, role, branch) if part)
    cls = lookup(QUANTIZERS, options.pop('type', None), f'{name}: type')
    return cls(role=role, branch=branch, name=name, axis=axis, channels=channels, **options)
