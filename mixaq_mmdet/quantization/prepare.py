"""Put a method's quantizers into a model: layers are replaced in place, parameters keep their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..registry import QUANTIZERS, lookup
from .layers import BranchQuantizers, KeepFloat, QuantMatmul, QuantWeight, to_quant_conv2d, to_quant_linear
from .methods import Method, build_method
from .overrides import check_overrides
from .quantizers import Quantizer
from .roles import BRANCH_ROLES, LAYER_NORM_ROLES, MATMUL_ROLES, roles_of
from .state import CONFIG_BUFFER, encode_config

TOKEN_AXIS = {'k': -1}
"""Keys come transposed: (windows, heads, channels, tokens); elsewhere tokens are the last axis but one."""


def prepare(backbone: nn.Module, quant: Mapping[str, Any]) -> Method:
    """Quantize a two-branch backbone according to ``quant``; it stays uncalibrated.

    The method is kept as ``backbone.quant_method`` and the config as a buffer that checkpoints carry.
    """
    method = build_method(quant, 'quant')
    check_overrides(method, replace_layers(backbone, method))
    backbone.quant_method = method  # type: ignore[assignment]
    method.adopt(backbone)
    backbone.register_buffer(CONFIG_BUFFER, encode_config(method.config))
    return method


def replace_layers(root: nn.Module, method: Method, prefix: str = '') -> list[str]:
    """Replace every Linear, Conv2d and attention product below ``root`` by what ``method`` says.

    Args:
        root: module whose children are replaced.
        method: gives the roles of each module path; its ``kept_float`` is told of layers that cannot be replaced.
        prefix: path of ``root`` itself, in front of its children's.

    Returns:
        The paths that the method was asked about.
    """
    paths: list[str] = []
    window_tokens = {
        f'{path}.': m.window_tokens for path, m in root.named_modules(prefix=prefix) if hasattr(m, 'window_tokens')
    }
    for parent_path, parent in list(root.named_modules(prefix=prefix)):
        for name, child in list(parent.named_children()):
            path = f'{parent_path}.{name}' if parent_path else name
            if isinstance(child, nn.Linear | nn.Conv2d) and not isinstance(child, QuantWeight):
                if not _is_plain(child):
                    method.kept_float.append((path, type(child).__name__))
                    continue
                paths.append(path)
                if roles := method.roles(path):
                    tokens = next((number for block, number in window_tokens.items() if path.startswith(block)), 1)
                    setattr(parent, name, quant_layer(child, path, roles, method.needs_bias(path), tokens))
        if hasattr(parent, 'query_key'):
            for name in MATMUL_ROLES:
                path = f'{parent_path}.{name}'
                paths.append(path)
                setattr(parent, name, _quant_product(parent, name, path, method.roles(path)))
    return paths


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer does what its base class does: no normalised (NormedLinear) or standardised (ConvWS) weights."""
    kind = type(layer)
    if getattr(kind, 'same_product', False) or kind.__module__ == 'mmcv.cnn.bricks.wrappers':
        return True
    return kind.forward in (nn.Linear.forward, nn.Conv2d.forward)


def quant_layer(
    layer: Any, path: str, roles: dict[str, dict[str, Any]], add_bias: bool = False, tokens: int = 1
) -> nn.Module:
    """The quantized twin of a Linear or Conv2d; a role that is missing stays float.

    ``tokens`` are those of a window, where the layer's input comes in window layout.
    """
    activations = [role for role in roles_of(path) if role != 'weight']
    conv = isinstance(layer, nn.Conv2d)
    outputs, channels = layer.weight.shape[0], (layer.in_channels if conv else layer.in_features)
    weight_quant = _build(roles['weight'], f'{path}.weight', 0, outputs) if 'weight' in roles else KeepFloat()
    inputs = _branches(roles, activations[0], path, 1 if conv else -1, channels, tokens)
    return (to_quant_conv2d if conv else to_quant_linear)(layer, weight_quant, inputs, add_bias)


def _quant_product(attention: Any, name: str, path: str, roles: dict[str, dict[str, Any]]) -> nn.Module | None:
    if not roles:
        return None
    tokens = attention.window_size[0] * attention.window_size[1]
    head_channels = attention.embed_dims // attention.num_heads
    operands = [
        (
            role,
            _branches(
                roles, role, path, -2 if role == 'k' else -1, tokens if role == 'attn' else head_channels, tokens
            ),
        )
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
        return _build(config_of_branch, f'{path}.{role}.{branch}', axis, channels)

    return BranchQuantizers(make, role in BRANCH_ROLES, token_axis, keep_padding=role in LAYER_NORM_ROLES)


def _build(config: dict[str, Any], name: str, axis: int, channels: int) -> Quantizer:
    options = dict(config)
    cls = lookup(QUANTIZERS, options.pop('type', None), f'{name}: type')
    return cls(name=name, axis=axis, channels=channels, **options)
