"""A linear layer, convolution or deconvolution of a neck or head on integers, in the place of the stock one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixaq_mmdet.quantization import QuantConvTranspose2d

from .backends import LayerRunner, pick
from .codes import to_codes
from .layouts import Geometry, Grid, Layer
from .part import Part


class IntegerLayer(Part):
    """Takes floats, or codes of its input's grid where what comes before it makes them.

    Args:
        layer: the layer.
        tensors: its part of the file, by name; written again when the detector is saved.
        shape: of the layer's weight in the file.
        engine: what runs it, see ``backends``.
    """

    made = ('runner',)

    def __init__(self, layer: Layer, tensors: dict[str, Tensor], shape: list[int], engine: str = 'auto') -> None:
        super().__init__()
        self.layer, self.tensors, self.shape, self.engine = layer, tensors, shape, engine
        self.runner: LayerRunner | None = None

    def make_runner(self) -> str:
        """Let the engine make what runs the layer; says what it runs as."""
        backend, reason = pick(self.engine, [self.layer])
        self.runner = backend.layer(self.layer)
        return backend.describe(reason)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H', W') channels last, or (..., K) to (..., N)."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError('a converted model cannot be trained; train the simulated one and convert it again')
        if self.runner is None:  # a copy, or in a process that it was sent to
            self.make_runner()
        assert self.runner is not None
        codes = x if x.dtype == torch.uint8 else to_codes(x.float(), self.layer.grid)
        return self.runner(codes) if self.layer.side == 1 else self._side_by_side(codes)

    def _side_by_side(self, codes: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N, H * side, W * side) channels last: what each pixel becomes, at its place."""
        assert self.runner is not None
        batch, channels, height, width = codes.shape
        side = self.layer.side
        out = self.runner(codes.permute(0, 2, 3, 1).reshape(batch * height * width, channels))
        outputs = out.shape[1] // side**2
        places = out.view(batch, height, width, side, side, outputs).transpose(2, 3)
        return places.reshape(batch, height * side, width * side, outputs).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """What it is, for ``print(model)``."""
        outputs, inputs = self.layer.weights.codes.shape
        side, geometry = self.layer.side, self.layer.geometry
        kind = f'deconvolution {(side, side)}' if side > 1 else 'linear'
        kind = kind if geometry is None else f'convolution {geometry.kernel}'
        return f'{kind}, {inputs} to {outputs}, relu={self.layer.relu}, codes={self.layer.out_grid is not None}'

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: value for name, value in self.tensors.items()})

    def _load_from_state_dict(self, *_: Any) -> None:
        """The detector reads the file and puts its layers in their places."""


def shape_of(layer: Any) -> list[int]:
    """Shape of a stock layer's weight as files have it: of a deconvolution (places * outputs, inputs)."""
    weight: Tensor = getattr(layer, 'weight', torch.empty(0))
    return [weight[0].numel(), len(weight)] if isinstance(layer, nn.ConvTranspose2d) else list(weight.shape)


def side_of(layer: Any, path: str) -> int:
    """How many pixels wide each pixel becomes: more than 1 for deconvolutions.

    Raises:
        ValueError: for one whose pixels meet.
    """
    if not isinstance(layer, nn.ConvTranspose2d):
        return 1
    if not QuantConvTranspose2d.fits(layer):
        raise ValueError(f'{path}: only deconvolutions convert whose kernel is their stride, without padding')
    return layer.stride[0]


def geometry_of(layer: Any, path: str) -> Geometry | None:
    """How a stock layer walks over a map.

    Raises:
        ValueError: for padding that is no zeros.
    """
    if not isinstance(layer, nn.Conv2d):
        return None
    if layer.padding_mode != 'zeros' or isinstance(layer.padding, str):
        raise ValueError(f'{path}: padding={layer.padding!r} of mode {layer.padding_mode!r}; only zeros convert')
    walk: list[Any] = [layer.kernel_size, layer.stride, layer.padding, layer.dilation]
    kernel, stride, padding, dilation = walk
    return Geometry(kernel, stride, padding, dilation, layer.groups)


def same_grid(first: Grid, second: Grid) -> bool:
    """Whether codes of one grid are codes of another that what makes them can hit: one step, no offset before it."""
    plain = all(grid.steps is None and grid.before is None for grid in (first, second))
    return plain and first[:3] == second[:3]
