"""From a calibrated two-branch backbone to integer tensors: packed weight codes, grids, norms.

A converted backbone is a state dict of its own: a header (JSON as a uint8 tensor: format, version, grids, sizes) and
tensors. Nothing in it is code, so that ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.quantization import DETECTOR_BUFFER, NotCalibratedError
from mixaq_mmdet.quantization.quantizers.base import Quantizer

from .grids import BRANCHES, describe_grid, pick_branch, weight_codes
from .packing import pack_codes
from .state import BLOCK_LAYERS, FORMAT, HEADER, VERSION, Header, State, write_header


def convert_backbone(backbone: nn.Module) -> State:
    """The integer state of a calibrated backbone, all tensors on the CPU.

    Raises:
        ValueError: for a model that is not quantized, or holds tensors that integers cannot express.
        NotCalibratedError: for one whose quantizers have no range.
    """
    check_convertible(backbone)
    header: Header = {'format': FORMAT, 'version': VERSION, 'layers': {}, 'blocks': {}}
    state: State = {}
    _add_linear(state, header, 'patch_embed.projection', backbone.patch_embed.projection)
    _add_norm(state, 'patch_embed.norm', backbone.patch_embed.norm)
    if backbone.use_abs_pos_embed:
        state['absolute_pos_embed'] = backbone.absolute_pos_embed
    for number, stage in enumerate(backbone.stages):
        for index, block in enumerate(stage.blocks):
            _add_block(state, header, f'stages.{number}.blocks.{index}', block)
        if stage.downsample is not None:
            path = f'stages.{number}.downsample'
            _add_linear(state, header, f'{path}.reduction', stage.downsample.reduction)
            _add_norm(state, f'{path}.norm', stage.downsample.norm)
    for index in backbone.out_indices:
        _add_norm(state, f'norm{index}', getattr(backbone, f'norm{index}'))
    state = {name: value.detach().cpu().clone() for name, value in state.items()}
    return {HEADER: write_header(header), **state}


def check_convertible(backbone: nn.Module) -> None:
    """Raise an error that names what stands against a conversion, and the remedy; see ``convert_backbone``."""
    if not isinstance(backbone, TwoBranchSwin) or getattr(backbone, 'quant_method', None) is None:
        raise ValueError(
            'model.backbone is no quantized TwoBranchSwin; give the config a type="TwoBranchSwin" and quant=dict(...), '
            'and a checkpoint that was calibrated or trained with it'
        )
    if hasattr(backbone, DETECTOR_BUFFER):
        raise ValueError(
            'model.detector_quant: neck and heads do not convert; calibrate the backbone alone, without QuantDetector'
        )
    last = len(backbone.stages) - 1
    if max(backbone.out_indices) < last:
        raise ValueError(
            f'model.backbone.out_indices={tuple(backbone.out_indices)} leaves the last stage unused and uncalibrated; '
            f'only a backbone that runs whole converts, so let out_indices include {last} when calibrating'
        )
    missing = [q.name for q in backbone.modules() if isinstance(q, Quantizer) and not q.ready]
    if missing:
        raise NotCalibratedError(missing[0])


def _add_block(state: State, header: Header, path: str, block: Any) -> None:
    attention, (fc1, fc2) = block.attn.w_msa, (block.ffn.layers[0][0], block.ffn.layers[1])
    if not isinstance(block.ffn.layers[0][1], nn.GELU) or not isinstance(block.ffn.gamma2, nn.Identity):
        raise ValueError(f'{path}: only FFNs with GELU and without layer scale convert')
    layers = dict(zip(BLOCK_LAYERS, (attention.qkv, attention.proj, fc1, fc2), strict=True))
    inputs = {f'{name}_in': layer.input_quant for name, layer in layers.items()}
    for name, product in (('q, k', attention.query_key), ('attn, v', attention.attention_value)):
        if product is None:
            raise ValueError(f'{path}: {name} stay float; drop the override that leaves them so')
        inputs.update(product.operands.items())
    for name, layer in layers.items():
        _add_linear(state, header, f'{path}.{name}', layer)
    grids = [
        {role: _add_grid(state, pick_branch(q, branch), path, role, branch) for role, q in inputs.items()}
        for branch in BRANCHES
    ]
    header['blocks'][path] = {
        'grids': grids,
        'heads': attention.num_heads,
        'tokens': block.window_tokens,
        'scale': attention.scale,
        'epsilon': block.norm1.eps,
    }
    for name in ('norm1', 'norm2'):
        norms = (getattr(block, name), getattr(block, f'{name}_low'))
        state[f'{path}.{name}.weight'] = torch.stack([norm.weight for norm in norms])
        state[f'{path}.{name}.bias'] = torch.stack([norm.bias for norm in norms])
    state[f'{path}.position_bias'] = attention.biases(0)[0]
    padding = torch.zeros(attention.embed_dims) if block.pad_value is None else block.pad_value
    with torch.no_grad():
        qkv = attention.qkv
        state[f'{path}.pad_qkv'] = nn.functional.linear(padding.to(qkv.weight), qkv.quantized_weight(), qkv.bias)


def _add_linear(state: State, header: Header, path: str, layer: Any) -> None:
    """Packed codes with their grid; the grid of a layer outside blocks comes along in the header."""
    weight = weight_codes(layer, path)
    if layer.compensation is not None:
        raise ValueError(f'{path}: a low-rank compensation has no integer form; calibrate with ranks=[] to convert')
    bits, rows = layer.weight_quant.bits, layer.weight.shape[0]
    state[f'{path}.codes'] = pack_codes(weight.codes.cpu(), bits)
    state[f'{path}.scale'] = weight.scale
    state[f'{path}.zero_point'] = weight.zero_point.to(torch.int16)
    state[f'{path}.bias'] = torch.zeros(rows) if layer.bias is None else layer.bias
    entry: dict[str, Any] = {'bits': bits, 'stride': weight.stride, 'shape': list(layer.weight.shape)}
    if '.blocks.' not in path:
        entry['grid'] = _add_grid(state, pick_branch(layer.input_quant, 'high'), path, 'input')
    header['layers'][path] = entry


def _add_grid(state: State, quantizer: Quantizer | None, path: str, role: str, branch: str = 'high') -> dict[str, Any]:
    """The header entry of a grid; its tensors go into the state."""
    entry, tensors = describe_grid(quantizer, path, role)
    state.update({f'{path}.{role}.{branch}.{name}': value for name, value in tensors.items()})
    return entry


def _add_norm(state: State, path: str, norm: nn.Module | None) -> None:
    if norm is not None:
        state.update({f'{path}.{name}': value for name, value in norm.named_parameters()})
