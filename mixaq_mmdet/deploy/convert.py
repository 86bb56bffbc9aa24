"""From calibrated modules to rows of the table: packed weight codes, grids, norms.

A converted model is a state dict of its own: a header (JSON as a uint8 tensor, see ``state.py``) and tensors. Nothing
in it is code, so that ``torch.load(weights_only=True)`` reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.quantize import is_converted
from mixaq_mmdet.quantization import NotCalibratedError, QueryKeyLinear
from mixaq_mmdet.quantization.layers import KeepFloat, QuantWeight
from mixaq_mmdet.quantization.quantizers.base import Quantizer

from .grids import WeightCodes, branches_of, describe_grid, weight_codes
from .packing import pack_codes
from .state import BLOCK_LAYERS, HEADER, State, new_header, write_header


def convert_backbone(backbone: Any) -> State:
    """The integer state of a calibrated backbone, all tensors on the CPU.

    Raises:
        ValueError: for a model that is not quantized, or holds tensors that integers cannot express.
        NotCalibratedError: for one whose quantizers have no range.
    """
    check_convertible(backbone)
    rows = Rows()
    rows.add_layer('patch_embed.projection', backbone.patch_embed.projection)
    rows.add_norm('patch_embed.norm', backbone.patch_embed.norm)
    if backbone.use_abs_pos_embed:
        rows.state['absolute_pos_embed'] = backbone.absolute_pos_embed
    for number, stage in enumerate(backbone.stages):
        for index, block in enumerate(stage.blocks):
            rows.add_block(f'stages.{number}.blocks.{index}', block)
        if stage.downsample is not None:
            path = f'stages.{number}.downsample'
            rows.add_layer(f'{path}.reduction', stage.downsample.reduction)
            rows.add_norm(f'{path}.norm', stage.downsample.norm)
    for index in backbone.out_indices:
        rows.add_norm(f'norm{index}', getattr(backbone, f'norm{index}'))
    return rows.finished()


def check_convertible(backbone: nn.Module) -> None:
    """Raise an error that names what stands against a conversion, and the remedy; see ``convert_backbone``."""
    if is_converted(backbone):
        raise ValueError('model.backbone is converted already; convert the calibrated (simulated) model')
    if not isinstance(backbone, TwoBranchSwin) or backbone.quant_method is None:
        raise ValueError(
            'model.backbone is not a quantized TwoBranchSwin; set type="TwoBranchSwin" and quant=dict(...), '
            'and a checkpoint that was calibrated or trained with it'
        )
    refuse_query_key(backbone)
    last = len(backbone.stages) - 1
    if max(backbone.out_indices) < last:
        raise ValueError(
            f'model.backbone.out_indices={tuple(backbone.out_indices)} leaves the last stage unused and uncalibrated; '
            f'only a backbone that runs whole converts, so let out_indices include {last} when calibrating'
        )
    missing = [q.name for q in backbone.modules() if isinstance(q, Quantizer) and not q.ready]
    if missing:
        raise NotCalibratedError(missing[0])


def refuse_query_key(model: nn.Module) -> None:
    """Raise a ValueError for a model that quantizes products of query and key weights."""
    if any(isinstance(module, QueryKeyLinear) for module in model.modules()):
        raise ValueError(
            'quant.qkr=True is simulated only: products of query and key weights have no integer form and no nodes; '
            'train with qkr=False to convert or export'
        )


def convert_layers(detector: nn.Module) -> tuple[State, dict[str, QuantWeight]]:
    """The rows of a detector's neck and heads, and the layers by path that are quantized in part and stay float.

    Raises:
        ValueError: for layers that integers cannot express.
        NotCalibratedError: for quantizers without a range.
    """
    rows, kept = Rows(), {}
    for path, layer in detector.named_modules():
        if not isinstance(layer, QuantWeight) or path.startswith('backbone.'):
            continue
        missing = [q.name for q in layer.modules() if isinstance(q, Quantizer) and not q.ready]
        if missing:
            raise NotCalibratedError(missing[0])
        if isinstance(layer.input_quant, KeepFloat):
            kept[path] = layer
        elif isinstance(layer.weight_quant, KeepFloat):
            raise ValueError(f'{path}: its input is quantized and its weight is not; let the override name both')
        else:
            rows.add_layer(path, layer, norm_behind(detector, path))
    return rows.finished(), kept


def norm_behind(detector: nn.Module, path: str) -> nn.BatchNorm2d | None:
    """The BatchNorm of a ConvModule whose convolution lies at ``path``, if it can be a part of it."""
    parent, _, name = path.rpartition('.')
    module: Any = detector.get_submodule(parent)
    follows = isinstance(module, ConvModule) and name == 'conv' and module.with_norm
    norm: Any = module.norm if follows and module.order[:2] == ('conv', 'norm') else None
    return norm if type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats else None


def with_norm(weight: WeightCodes, bias: Tensor, norm: nn.BatchNorm2d, bits: int) -> tuple[WeightCodes, Tensor]:
    """Weight and bias (N,) of a convolution and of the BatchNorm behind it, in eval mode, in one.

    Where its factor is negative codes count from the other end, so that steps stay positive.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = (bias.double() - norm.running_mean.double()) * factor + norm.bias.double()
    negative, top = factor < 0, 2**bits - 1
    codes = torch.where(negative.view(-1, 1, 1, 1), top - weight.codes, weight.codes)
    zero_point = torch.where(negative, weight.stride * top - weight.zero_point, weight.zero_point)
    scale = (weight.scale.double() * factor.abs()).float()
    return weight._replace(codes=codes, scale=scale, zero_point=zero_point), shifted.float()


class Rows:
    """The table while it grows: one small method for each kind of module."""

    def __init__(self) -> None:
        self.header = new_header()
        self.state: State = {}

    def finished(self) -> State:
        """The state, all tensors on the CPU."""
        state = {name: value.detach().cpu().clone() for name, value in self.state.items()}
        return {HEADER: write_header(self.header), **state}

    def add_layer(self, path: str, layer: Any, norm: nn.BatchNorm2d | None = None) -> None:
        """Packed codes of a layer, with a BatchNorm behind it, and the grid of its input in each branch."""
        weight = weight_codes(layer, path)
        if layer.compensation is not None:
            raise ValueError(f'{path}: a low-rank compensation has no integer form; calibrate with ranks=[] to convert')
        bits, shape = layer.weight_quant.bits, list(weight.codes.shape)
        # a deconvolution has a row for each place of its kernel and each output
        bias = torch.zeros(shape[0], device=weight.scale.device) if layer.bias is None else layer.bias.detach()
        bias = bias.repeat(shape[0] // len(bias))
        if norm is not None:
            weight, bias = with_norm(weight, bias, norm, bits)
        self.state[f'{path}.codes'] = pack_codes(weight.codes.cpu(), bits)
        self.state[f'{path}.scale'] = weight.scale
        self.state[f'{path}.zero_point'] = weight.zero_point.to(torch.int16)
        self.state[f'{path}.bias'] = bias
        self.header['layers'][path] = {
            'bits': bits,
            'stride': weight.stride,
            'shape': shape,
            'input': self._add_grids(f'{path}.input', path, layer.input_quant),
            **({} if norm is None else {'norm': True}),
        }

    def add_norm(self, path: str, norm: nn.Module | None) -> None:
        """Float parameters."""
        if norm is not None:
            self.state.update({f'{path}.{name}': value for name, value in norm.named_parameters()})

    def add_block(self, path: str, block: Any) -> None:
        """A Swin block: its layers, the products inside attention, both branches' norms, position bias, padding."""
        attention, ffn = block.attn.w_msa, block.ffn
        if not isinstance(ffn.layers[0][1], nn.GELU) or not isinstance(ffn.gamma2, nn.Identity):
            raise ValueError(f'{path}: only FFNs with GELU and without layer scale convert')
        products = {}
        for name, product in (('q, k', attention.query_key), ('attn, v', attention.attention_value)):
            if product is None:
                raise ValueError(f'{path}: {name} stay float; remove the override that leaves them float')
            products.update(product.operands.items())
        for layer in BLOCK_LAYERS.values():
            self.add_layer(f'{path}.{layer}', block.get_submodule(layer))
        self.header['blocks'][path] = {
            'grids': {role: self._add_grids(f'{path}.{role}', path, q, role) for role, q in products.items()},
            'heads': attention.num_heads,
            'tokens': block.window_tokens,
            'scale': attention.scale,
            'epsilon': block.norm1.eps,
        }
        for name in ('norm1', 'norm2'):
            norms = (getattr(block, name), getattr(block, f'{name}_low'))
            self.state[f'{path}.{name}.weight'] = torch.stack([norm.weight for norm in norms])
            self.state[f'{path}.{name}.bias'] = torch.stack([norm.bias for norm in norms])
        self.state[f'{path}.position_bias'] = attention.biases(0)[0]
        padding = torch.zeros(attention.embed_dims) if block.pad_value is None else block.pad_value
        with torch.no_grad():
            qkv = attention.qkv
            padded = nn.functional.linear(padding.to(qkv.weight), qkv.quantized_weight(), qkv.bias)
        self.state[f'{path}.pad_qkv'] = padded

    def _add_grids(self, name: str, path: str, quantizers: Any, role: str = 'input') -> dict[str, Any]:
        """The header entries of a grid by branch; their tensors go into the state."""
        entries = {}
        for branch, quantizer in branches_of(quantizers).items():
            entries[branch], tensors = describe_grid(quantizer, path, role)
            self.state.update({f'{name}.{branch}.{key}': value for key, value in tensors.items()})
        return entries
