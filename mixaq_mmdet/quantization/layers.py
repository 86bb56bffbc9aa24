"""Quantized layers: float parameter names, one weight for both branches, one activation quantizer per branch.

A branch-aware layer is called with the tensor of both branches - the leading ``split.high`` entries of dimension 0 are
high, the rest low - so that the branches share one matrix product and the weight is quantized once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BranchAware
from .quantizers.base import Quantizer

BRANCHES = ('high', 'low')


class Split(NamedTuple):
    """Which entries of dimension 0 belong to which branch: the first ``high`` to the high one, the rest to the low one.

    Dimension 0 counts windows, of ``tokens`` tokens each. Only the FFN of a padded map, which skips padding, counts
    tokens there; ``slots`` then tells the place of each: it is token ``slots % tokens`` of its window.

    Attributes:
        high: entries of the high branch.
        slots: (entries,) place of each token among windows * tokens, or None where dimension 0 counts windows.
        real: (windows, tokens) bool, False for padding; None where dimension 0 counts tokens or there is no padding.
    """

    high: int
    slots: Tensor | None = None
    real: Tensor | None = None


class KeepFloat(nn.Module):
    """In the place of a quantizer where an override leaves a role float."""

    mode = 'float'

    def forward(self, x: Tensor, split: Split | None = None) -> Tensor:
        """Return ``x``."""
        return x


class BranchQuantizers(nn.Module):
    """The quantizers of one activation: ``high`` and, inside two-branch blocks, ``low``.

    Args:
        make: builds the quantizer of a branch, 'high' or 'low'.
        two: whether there is a low branch.
        token_axis: which axis of a windowed tensor counts tokens, from the end.
        keep_padding: let padding tokens pass as they are. They are the same constant in every window and image, so
            that nothing is lost, while a fold may put them far outside the grid of the data.
    """

    def __init__(
        self, make: Callable[[str], Quantizer], two: bool, token_axis: int = -2, keep_padding: bool = False
    ) -> None:
        super().__init__()
        self.high = make('high')
        self.low = make('low') if two else None
        self.token_axis = token_axis
        self.keep_padding = keep_padding

    def forward(self, x: Tensor, split: Split | None = None) -> Tensor:
        """Quantize each branch's slice of ``x``; without a split, or without a low branch, all of it is high."""
        if split is None or self.low is None:
            return self._observe(self.high, x, None) if self.high.mode == 'observe' else self.high(x)
        if 'observe' in (self.high.mode, self.low.mode):
            self._observe_branches(x[: split.high], x[split.high :], split)
            return x
        out = self._quantize_branches(x, split)
        if not self.keep_padding or split.real is None:
            return out
        return torch.where(split.real.unsqueeze(-1), out, x)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, split: Split | None = None) -> Tensor:
        """``F.linear`` of the quantized ``x``; in training a quantizer may spare itself keeping it."""
        keeps = self.keep_padding and split is not None and split.real is not None
        spares = self.high.spares_linear and not keeps and torch.is_grad_enabled()
        if not spares or split is None or self.low is None or not self.high.mode == self.low.mode == 'quantize':
            return F.linear(self(x, split), weight, bias)
        return self.high.linear_with_low(self.low, x, split.high, weight, bias, split.slots)

    def _quantize_branches(self, x: Tensor, split: Split) -> Tensor:
        assert self.low is not None
        in_place = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        if not in_place or self.high.mode != 'quantize' or self.low.mode != 'quantize':
            # an empty branch is called too, so that its learned parameters get a gradient (of zero)
            return self.high.with_low(self.low, x, split.high, split.slots)
        out = torch.empty_like(x)
        for quantizer, part in ((self.high, slice(split.high)), (self.low, slice(split.high, None))):
            if len(x[part]):
                quantizer(x[part], out[part], None if split.slots is None else split.slots[part])
        return out

    def _observe_branches(self, high: Tensor, low: Tensor, split: Split) -> None:
        real = split.real
        for quantizer, x, selected in (
            (self.high, high, None if real is None else real[: split.high]),
            (self.low, low, None if real is None else real[split.high :]),
        ):
            if quantizer is not None and quantizer.mode == 'observe':
                self._observe(quantizer, x, selected)

    def _observe(self, quantizer: Quantizer, x: Tensor, real: Tensor | None) -> Tensor:
        """Padding tokens carry no information about the data: they are left out."""
        if real is None:
            quantizer(x)
            return x
        seen = x.movedim(self.token_axis, 1)[real]
        quantizer(seen.transpose(-1, -2) if self.token_axis == -1 else seen)
        return x

    def branches(self) -> dict[str, Quantizer]:
        """The quantizers by branch name."""
        return {name: quantizer for name in BRANCHES if (quantizer := getattr(self, name)) is not None}


class QuantWeight(BranchAware, nn.Module):
    """What quantized layers share: the weight quantizer, the frozen state, an optional extra bias."""

    weight: Any
    bias: Any
    weight_quant: Quantizer | KeepFloat
    input_quant: BranchQuantizers | KeepFloat
    folded: Tensor
    compensation: nn.Module | None
    _frozen: Tensor | None
    _added_bias: bool

    def adopt(
        self, weight_quant: Quantizer | KeepFloat, input_quant: BranchQuantizers | KeepFloat, add_bias: bool
    ) -> None:
        """Take over the quantizers; ``add_bias`` creates a bias of zero where the float layer has none."""
        self.register_buffer('folded', torch.zeros((), dtype=torch.uint8))
        self.weight_quant = weight_quant
        self.input_quant = input_quant
        self.compensation = None
        self._frozen = None
        self._added_bias = add_bias and self.bias is None
        if self._added_bias:
            self.bias = nn.Parameter(self.weight.new_zeros(self.weight.shape[0]))

    @property
    def source_weight(self) -> Tensor:
        """What the weight quantizer sees: the weight, or what a layer makes of it."""
        return self.weight

    def from_source(self, weight: Tensor) -> Tensor:
        """Something laid out as ``source_weight``, laid out as ``weight``."""
        return weight

    def boundary_distance(self) -> Tensor | None:
        """How far each weight is from where its code changes, in steps; None where the grid does not say."""
        if not isinstance(self.weight_quant, Quantizer):
            return None
        return self.weight_quant.boundary_distance(self.source_weight)

    def quantized_weight(self) -> Tensor:
        """The fake-quantized weight, the same for both branches; in float mode the weight itself, kept one or not."""
        if self._frozen is None or self.weight_quant.mode == 'float':
            return self.weight_quant(self.source_weight)
        return self._frozen

    def freeze(self) -> None:
        """Keep the quantized weight across forwards, until ``train()``, loading, or a move of dtype or device.

        For evaluation only. Whoever changes the weight in another way calls :meth:`unfreeze`.
        """
        if self.training:
            raise ValueError('frozen weights are for evaluation; call eval() first')
        self.hold()

    def hold(self, weight: Tensor | None = None) -> None:
        """As :meth:`freeze`, in any mode, or keep ``weight``: whoever calls this lets go at the end of its work."""
        if weight is None:
            with torch.no_grad():
                weight = self.weight_quant(self.source_weight).detach()
        self._frozen = weight

    def unfreeze(self) -> None:
        """Quantize the weight anew in every forward."""
        self._frozen = None

    def train(self, mode: bool = True) -> Any:
        self.unfreeze()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.unfreeze()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.unfreeze()
        state_dict.setdefault(f'{prefix}folded', torch.zeros_like(self.folded))
        if self._added_bias:
            state_dict.setdefault(f'{prefix}bias', torch.zeros_like(self.bias))
        super()._load_from_state_dict(state_dict, prefix, *args)


class QuantLinear(QuantWeight, nn.Linear):
    """Linear layer with quantized weight and input; ``compensation(x, out)``, if set, corrects its output."""

    def forward(self, x: Tensor, split: Split | None = None) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        weight = self.quantized_weight()
        # with a float weight there is nothing to compensate
        if self.compensation is not None and self.weight_quant.mode != 'float':
            x = self.input_quant(x, split)
            return self.compensation(x, F.linear(x, weight, self.bias))
        if isinstance(self.input_quant, BranchQuantizers):
            return self.input_quant.linear(x, weight, self.bias, split)
        return F.linear(self.input_quant(x, split), weight, self.bias)


class QuantConv2d(QuantWeight, nn.Conv2d):
    """Convolution with quantized weight and input."""

    def forward(self, x: Tensor, split: Split | None = None) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H', W')."""
        return self._conv_forward(self.input_quant(x, split), self.quantized_weight(), self.bias)


class QuantConvTranspose2d(QuantWeight, nn.ConvTranspose2d):
    """Deconvolution whose kernel is its stride, with quantized weight and input.

    It is a linear layer of each pixel, whose outputs lie side by side: its weight is quantized as that of such a layer,
    (places * out_channels, in_channels), place after place of the kernel, one grid for each row.
    """

    @staticmethod
    def fits(layer: nn.ConvTranspose2d) -> bool:
        """Whether a deconvolution is such a layer."""
        plain = layer.groups == 1 and not any((*layer.padding, *layer.output_padding))
        return plain and layer.kernel_size == layer.stride and layer.stride[0] == layer.stride[1] > 1

    @property
    def source_weight(self) -> Tensor:
        return self.weight.permute(2, 3, 1, 0).flatten(0, 2)

    def from_source(self, weight: Tensor) -> Tensor:
        return weight.view(*self.kernel_size, self.out_channels, self.in_channels).permute(3, 2, 0, 1)

    def forward(self, x: Tensor, split: Split | None = None) -> Tensor:  # type: ignore[override]
        """Map (B, C, H, W) to (B, out_channels, H * stride, W * stride)."""
        weight = self.from_source(self.quantized_weight())
        return F.conv_transpose2d(self.input_quant(x, split), weight, self.bias, self.stride)


class QuantMatmul(BranchAware, nn.Module):
    """Product of two quantized activations.

    Args:
        left: name and quantizers of the left operand.
        right: name and quantizers of the right operand.
    """

    def __init__(self, left: tuple[str, BranchQuantizers], right: tuple[str, BranchQuantizers]) -> None:
        super().__init__()
        self.operands = nn.ModuleDict(dict([left, right]))

    def forward(self, left: Tensor, right: Tensor, split: Split | None = None) -> Tensor:
        """(..., M, K) times (..., K, N)."""
        quantize_left, quantize_right = self.operands.values()
        return quantize_left(left, split) @ quantize_right(right, split)


def to_quant_linear(layer: nn.Linear, weight_quant: Any, input_quant: Any, add_bias: bool = False) -> QuantLinear:
    """A QuantLinear that owns the parameters of ``layer``."""
    quant = QuantLinear(layer.in_features, layer.out_features, bias=False, device='meta')
    return take_over(quant, layer, weight_quant, input_quant, add_bias)


def to_quant_conv2d(layer: nn.Conv2d, weight_quant: Any, input_quant: Any, add_bias: bool = False) -> QuantConv2d:
    """A QuantConv2d that owns the parameters of ``layer``."""
    quant = QuantConv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device='meta',
    )
    return take_over(quant, layer, weight_quant, input_quant, add_bias)


def to_quant_deconvolution(
    layer: nn.ConvTranspose2d, weight_quant: Any, input_quant: Any, add_bias: bool = False
) -> QuantConvTranspose2d:
    """A QuantConvTranspose2d that owns the parameters of ``layer``."""
    kernel: Any = layer.kernel_size
    quant = QuantConvTranspose2d(layer.in_channels, layer.out_channels, kernel, kernel, bias=False, device='meta')
    return take_over(quant, layer, weight_quant, input_quant, add_bias)


def take_over(quant: Any, layer: nn.Module, weight_quant: Any, input_quant: Any, add_bias: bool) -> Any:
    """Give ``quant`` the parameters of ``layer`` and the quantizers; returns ``quant``."""
    quant.weight = layer.weight
    quant.bias = layer.bias
    quant.adopt(weight_quant, input_quant, add_bias)
    # not train(): it would drop what was just set up, and mmdet's heads keep their own modes
    quant.training = layer.training
    return quant


@contextmanager
def held_weights(module: nn.Module) -> Iterator[None]:
    """Quantize each weight once however often its layer is called inside; without gradients only."""
    layers = [] if torch.is_grad_enabled() else [child for child in module.modules() if isinstance(child, QuantWeight)]
    loose = [layer for layer in layers if layer._frozen is None]
    try:
        for layer in loose:
            layer.hold()
        yield
    finally:
        for layer in loose:
            layer.unfreeze()
