"""A simulated model, rewritten so that a target's graph says its grids."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixaq_mmdet.models.two_branch_block import TwoBranchSwinBlock
from mixaq_mmdet.quantization import NotCalibratedError
from mixaq_mmdet.quantization.blocks import ProductAttention
from mixaq_mmdet.quantization.layers import (
    BranchQuantizers,
    KeepFloat,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
    QuantMatmul,
)
from mixaq_mmdet.quantization.quantizers.adaptive import AdaptiveLogQuantizer
from mixaq_mmdet.quantization.quantizers.base import Quantizer
from mixaq_mmdet.quantization.quantizers.logarithmic import Log2Quantizer
from mixaq_mmdet.quantization.roles import MATMUL_ROLES, ROLES, roles_of

from .convolution import ConvNodes, IntegerConvNodes, PatchGemm, PixelGemm
from .grids import ActivationGrid, Inexpressible, WeightGrid, activation_grid, weight_grid
from .quantize import LinearNodes, MatmulNodes, PairNodes, ProductNodes
from .saturation import HIGHEST, largest_pair

SHOWN = 4


@dataclass(frozen=True)
class Dialect:
    """How a target wants quantization to be written.

    Attributes:
        name: of the target.
        signed: int8 activations with zero point 0, and weights without zero points.
        as_gemm: linear layers as Gemm with an int32 bias, convolutions as ConvInteger.
        products: whether the target has integer kernels for attention products.
        weights: 'int8'; 'uint8', whose products do not saturate on CPUs without VNNI; 'fitting': uint8 where int8 can
            saturate.
        residuals: whether the target fuses quantized residuals into the product in front of their addition.
    """

    name: str
    signed: bool = False
    as_gemm: bool = False
    products: bool = True
    weights: str = 'int8'
    residuals: bool = False

    def on_any_cpu(self) -> Dialect:
        """The same without products that saturate on CPUs without VNNI; what runs on no CPU stays as it is."""
        return self if self.signed or self.weights == 'uint8' else replace(self, weights='fitting')


@dataclass
class Lowered:
    """What lowering left out, in words.

    Attributes:
        dropped: roles whose grids the target has no integer kernels for: their tensors stay float.
        emulated: roles whose grids are written as float operations, because the caller asked.
        float_layers: quantized layers that the target computes in float.
    """

    dropped: set[str] = field(default_factory=set)
    emulated: set[str] = field(default_factory=set)
    float_layers: list[str] = field(default_factory=list)

    def lines(self, target: str) -> list[str]:
        """One line for each kind."""
        found = []
        if self.dropped:
            found.append(f'{target}: no integer kernels for {_listed(self.dropped)}; their grids are dropped')
        if self.emulated:
            found.append(f'{target}: {_listed(self.emulated)} are emulated in float, as asked')
        if self.float_layers:
            shown = ', '.join(self.float_layers[:SHOWN]) + (', ...' if len(self.float_layers) > SHOWN else '')
            found.append(f'{target}: {len(self.float_layers)} quantized layers stay float: {shown}')
        return found


def check_calibrated(model: nn.Module) -> None:
    """A NotCalibratedError if a quantizer has no range yet."""
    for module in model.modules():
        if isinstance(module, Quantizer) and not module.ready:
            raise NotCalibratedError(module.name)


def drop_products(model: nn.Module, dialect: Dialect) -> set[str]:
    """Let attention products that the target has no integer kernels for be float; their roles."""
    dropped: set[str] = set()
    for module in (m for m in model.modules() if isinstance(m, ProductAttention)):
        for name, roles in MATMUL_ROLES.items():
            product = getattr(module, name)
            if isinstance(product, QuantMatmul) and (not dialect.products or _is_logarithmic(product)):
                setattr(module, name, None)
                dropped.update(roles)
    return dropped


def _is_logarithmic(product: QuantMatmul) -> bool:
    """Powers of two have no nodes; a product with one such operand is float as a whole."""
    return any(isinstance(quantizer, Log2Quantizer | AdaptiveLogQuantizer) for quantizer in product.modules())


@torch.no_grad()
def lower(model: nn.Module, dialect: Dialect, emulate: Collection[str] = ()) -> Lowered:
    """Replace every quantized layer by nodes, in place.

    Args:
        model: a simulated model in eval mode.
        dialect: of the target.
        emulate: roles that may be written as float operations where the target cannot say their grids.

    Raises:
        ValueError: for grids that the target cannot say; it lists them.
    """
    if unknown := set(emulate) - set(ROLES):
        raise ValueError(f'emulate={sorted(unknown)} are no roles; use some of {list(ROLES)}')
    lowered, refused = Lowered(), []
    paddings = {
        f'{path}.attn.w_msa.qkv': block
        for path, block in model.named_modules()
        if isinstance(block, TwoBranchSwinBlock)
    }
    for path, module in list(model.named_modules()):
        if not isinstance(module, QuantLinear | QuantConv2d | QuantConvTranspose2d | QuantMatmul):
            continue
        try:
            replacement = _nodes_of(module, path, dialect, paddings.get(path), lowered)
        except Inexpressible as error:
            roles = set(module.operands if isinstance(module, QuantMatmul) else roles_of(path)[1:])
            if not roles <= set(emulate):
                refused.append((roles, str(error)))
                continue
            lowered.emulated |= roles
            replacement = _emulated(module)
        parent, _, name = path.rpartition('.')
        setattr(model.get_submodule(parent), name, replacement)
    if refused:
        roles = set().union(*(roles for roles, _ in refused))
        shown = '; '.join(reason for _, reason in refused[:SHOWN]) + ('; ...' if len(refused) > SHOWN else '')
        raise ValueError(
            f'target {dialect.name!r} cannot express {len(refused)} grids: {shown}. {_remedy(dialect)}, or have them '
            f'emulated in float, which is slow: emulate={sorted(roles)} (--emulate {" ".join(sorted(roles))})'
        )
    return lowered


def _remedy(dialect: Dialect) -> str:
    if dialect.signed:
        return 'Quantize with w_symmetric=True and a_symmetric=True'
    return 'Use a method with one uniform grid per activation (RepQ, MinMax, Percentile, MSE, LSQ)'


def _emulated(module: Any) -> nn.Module:
    """The simulated layer itself, its weight as a constant."""
    if isinstance(module, QuantMatmul):
        return module
    weight = module.from_source(module.weight_quant(module.source_weight))
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    module.weight_quant = KeepFloat()
    return module


def _nodes_of(
    module: Any, path: str, dialect: Dialect, block: TwoBranchSwinBlock | None, lowered: Lowered
) -> nn.Module:
    if isinstance(module, QuantMatmul):
        return _product_nodes(module, path, dialect)
    weight = weight_grid(module, path)
    if dialect.signed and weight.zero_point is not None:
        raise Inexpressible(f'{path}.weight: zero points')
    if dialect.signed and not _is_centred(module):
        raise Inexpressible(f'{path}.weight: an asymmetric grid')
    grids = _grids(module.input_quant, path)
    if dialect.weights == 'uint8' or (dialect.weights == 'fitting' and _can_saturate(weight, grids)):
        weight = weight.unsigned()
    try:
        if isinstance(module, QuantConv2d):
            return _conv_nodes(module, path, dialect, grids, weight, lowered)
        if isinstance(module, QuantConvTranspose2d):
            return _deconvolution_nodes(module, dialect, grids['high'], weight)
        return _linear_nodes(module, dialect, grids, weight, block)
    except Inexpressible as error:
        raise Inexpressible(f'{path}: {error}') from error


def _can_saturate(weight: WeightGrid, grids: Mapping[str, ActivationGrid]) -> bool:
    """Whether two neighbouring products of codes can exceed 16 bits; with zero points OpenVINO takes float."""
    highest = 2 ** max(grid.bits for grid in grids.values()) - 1
    return weight.zero_point is None and highest * largest_pair(weight.codes.numpy()) > HIGHEST


def _is_centred(layer: Any) -> bool:
    """Whether a weight's codes lie symmetrically around zero, as ranges of explicit quantization are read."""
    zero_point = getattr(layer.weight_quant, 'zero_point', None)
    return zero_point is None or bool((zero_point == 2 ** (layer.weight_quant.bits - 1)).all())


def _grids(quantizers: Any, path: str) -> dict[str, ActivationGrid]:
    role = roles_of(path)[1]
    branches = quantizers.branches() if isinstance(quantizers, BranchQuantizers) else {'high': None}
    return {name: activation_grid(quantizer, f'{path}.{role}') for name, quantizer in branches.items()}


def _product_nodes(product: QuantMatmul, path: str, dialect: Dialect) -> nn.Module:
    (left, of_left), (right, of_right) = product.operands.items()
    if not isinstance(of_left, BranchQuantizers) or not isinstance(of_right, BranchQuantizers):
        raise Inexpressible(f'{path}: one operand is left float by an override')
    pairs = {}
    for branch in of_left.branches():
        grids = [
            activation_grid(operand.branches()[branch], f'{path}.{role}')
            for role, operand in ((left, of_left), (right, of_right))
        ]
        try:
            pairs[branch] = PairNodes(grids[0], grids[1], dialect.signed)
        except Inexpressible as error:
            raise Inexpressible(f'{path}: {error}') from error
    return MatmulNodes(pairs)


def _linear_nodes(
    layer: QuantLinear,
    dialect: Dialect,
    grids: dict[str, ActivationGrid],
    weight: WeightGrid,
    block: TwoBranchSwinBlock | None,
) -> nn.Module:
    products: dict[str, nn.Module] = {
        name: ProductNodes(grid, weight, layer.bias, dialect.signed, dialect.as_gemm) for name, grid in grids.items()
    }
    if layer.compensation is not None and layer.compensation.rank:
        products = {
            name: CompensatedNodes(product, layer.compensation, grids[name]) for name, product in products.items()
        }
    return LinearNodes(products, _padding(layer, weight, grids, block))


def _padding(
    layer: QuantLinear, weight: WeightGrid, grids: dict[str, ActivationGrid], block: TwoBranchSwinBlock | None
) -> Tensor | None:
    """What padding tokens become: they are the same constant everywhere and pass unquantized; zero is on most grids."""
    if block is None or (block.pad_value is None and all(grid.before is None for grid in grids.values())):
        return None
    values = weight.values()
    value = values.new_zeros(values.shape[1]) if block.pad_value is None else block.pad_value.to(values)
    return F.linear(value, values, None if layer.bias is None else layer.bias.detach().float())


class CompensatedNodes(nn.Module):
    """A branch of a linear layer with a low-rank correction of its output, computed from the quantized input."""

    down: Tensor
    up: Tensor
    shift: Tensor | None

    def __init__(self, product: Any, compensation: Any, grid: ActivationGrid) -> None:
        super().__init__()
        self.product = product
        rank = compensation.rank
        self.register_buffer('down', compensation.down[:rank].detach().float())
        self.register_buffer('up', compensation.up[:, :rank].detach().float())
        self.register_buffer(
            'shift', None if grid.after is None else F.linear(F.linear(grid.after, self.down), self.up)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        correction = F.linear(F.linear(self.product.activation(x), self.down), self.up)
        out = self.product(x) + correction
        return out if self.shift is None else out + self.shift


def _conv_nodes(
    layer: QuantConv2d,
    path: str,
    dialect: Dialect,
    grids: dict[str, ActivationGrid],
    weight: WeightGrid,
    lowered: Lowered,
) -> nn.Module:
    grid = grids['high']
    if dialect.as_gemm and PatchGemm.fits(layer):
        flat = weight._replace(codes=weight.codes.flatten(1))
        patch = flat.codes.shape[1] // layer.in_channels
        before, after = (x if x is None else x.repeat_interleave(patch) for x in (grid.before, grid.after))
        spread = grid._replace(before=before, after=after)
        return PatchGemm(layer, ProductNodes(spread, flat, layer.bias, as_gemm=True))
    if dialect.as_gemm and IntegerConvNodes.fits(layer, weight):
        # int8 weights of convolutions take a kernel that is several times slower
        return IntegerConvNodes(layer, grid, weight if weight.codes.dtype == torch.uint8 else weight.unsigned())
    if dialect.as_gemm:
        lowered.float_layers.append(path)
    return ConvNodes(layer, grid, weight, dialect.signed)


def _deconvolution_nodes(
    layer: QuantConvTranspose2d, dialect: Dialect, grid: ActivationGrid, weight: WeightGrid
) -> nn.Module:
    bias = None if layer.bias is None else layer.bias.repeat(len(weight.scale) // len(layer.bias))
    return PixelGemm(layer, ProductNodes(grid, weight, bias, dialect.signed, dialect.as_gemm))


def _listed(roles: Collection[str]) -> str:
    return ', '.join(sorted(roles))
