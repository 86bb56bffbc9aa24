"""Samples of what enters the layers and products of a block, for methods that look at the errors of their outputs.

Of every image each module keeps the same few rows in each branch, evenly spread, so that any split of the images over
ranks keeps the same ones. Padding tokens are left out; as keys and values they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import QuantConv2d, QuantLinear, QuantMatmul, Split
from .methods.base import BlockInputs
from .quantizers.base import quantizer_mode

PROBE = 0.01
"""Of the root mean square of a block's output: how far it is moved to where the loss has a gradient."""


class Sample(NamedTuple):
    """Rows that one call of a module read in one branch.

    Attributes:
        branch: 'high' or 'low'.
        left: (rows, K) of a layer, a convolution's as patches; (windows, heads, M, K) of a product.
        right: (windows, heads, K, N) of a product, else None.
        real: (windows, 1, M, 1) bool of a product's rows, where there is padding.
        locate: from a tensor of the module's output to these rows of it, (rows, N) or (windows, heads, M, N).
        out: the module's output; empty once it is kept.
        shape: of these rows of it.
    """

    branch: str
    left: Tensor
    right: Tensor | None
    real: Tensor | None
    locate: Callable[[Tensor], Tensor]
    out: Tensor
    shape: torch.Size


class Weighted(NamedTuple):
    """A sample and what weighs the errors of its output, of that shape or one that broadcasts; None weighs nothing."""

    sample: Sample
    importance: Tensor | None


Samples = dict[nn.Module, list[Weighted]]


def sampled_modules(block: nn.Module) -> list[nn.Module]:
    """The layers and products of a block, in order of definition; no convolutions that are no product of patches."""
    return [m for m in block.modules() if isinstance(m, QuantLinear | QuantMatmul) or _takes_patches(m)]


def _takes_patches(module: nn.Module) -> bool:
    if not isinstance(module, QuantConv2d):
        return False
    return module.groups == 1 and module.padding_mode == 'zeros' and not isinstance(module.padding, str)


@torch.no_grad()
def sample_inputs(block: nn.Module, inputs: BlockInputs, rows: int) -> Samples:
    """What the modules of a block read while it runs in float over all images; ``rows`` of each image and branch."""
    found: Samples = {module: [] for module in sampled_modules(block)}

    def keep(module: nn.Module, sample: Sample) -> None:
        found[module].append(Weighted(sample._replace(out=sample.out.new_empty(0)), sample.real))

    with quantizer_mode(block, 'float'), _listening(found, rows, keep):
        inputs.replay(block)
    return found


def sample_with_gradients(block: nn.Module, inputs: BlockInputs, rows: int, generator: torch.Generator) -> Samples:
    """The same, weighed by the gradient of the model's loss at each module's output.

    A loss that compares with the float model has no gradient there. So the block's output is moved to both sides by
    random signs, and the root mean square of the two gradients, each taken back through the block, is what weighs.
    """
    found: Samples = {module: [] for module in sampled_modules(block)}
    for index in range(len(inputs)):
        live: list[tuple[nn.Module, Sample]] = []

        def keep(module: nn.Module, sample: Sample, live: list[tuple[nn.Module, Sample]] = live) -> None:
            live.append((module, sample))

        with torch.enable_grad(), quantizer_mode(block, 'float'):
            with _listening(found, rows, keep):
                outputs = inputs.outputs(block, index)
            sides = _gradients_around(inputs, index, [out.detach() for out in outputs], generator)
            gradients = _through_block(outputs, sides, [sample.out for _, sample in live])
        for (module, sample), gradient in zip(live, gradients, strict=True):
            importance = sample.real
            if gradient is not None and bool(gradient.any()):
                importance = sample.locate(gradient)
                importance = importance if sample.real is None else importance * sample.real
            kept = sample._replace(out=sample.out.new_empty(0))
            found[module].append(Weighted(kept, None if importance is None else importance.clone()))
        inputs.tick()
    return found


def _through_block(
    outputs: Sequence[Tensor], sides: Sequence[Sequence[Tensor]], inner: Sequence[Tensor]
) -> list[Tensor | None]:
    """Root mean square over ``sides`` of the gradients at ``inner``; None for what has no influence on ``outputs``."""
    squares: list[Tensor | None] = [None] * len(inner)
    reached = [number for number, out in enumerate(outputs) if out.requires_grad]
    for gradients in sides if inner and reached else ():
        starts = [gradients[number] for number in reached]
        ends = [outputs[number] for number in reached]
        found = torch.autograd.grad(ends, list(inner), starts, retain_graph=True, allow_unused=True)
        for number, gradient in enumerate(found):
            if gradient is not None:
                before = squares[number]
                square = gradient.square() / len(sides)
                squares[number] = square if before is None else before + square
    return [None if square is None else square.sqrt() for square in squares]


def _gradients_around(
    inputs: BlockInputs, index: int, outputs: Sequence[Tensor], generator: torch.Generator
) -> list[list[Tensor]]:
    """Gradients of the loss with the outputs moved up and with them moved down."""
    # equal moves of all channels would not do: the norms behind take them away
    signs = [torch.randint(0, 2, out.shape, generator=generator).mul(2).sub(1).to(out) for out in outputs]
    moves = [sign * PROBE * out.square().mean().sqrt() for sign, out in zip(signs, outputs, strict=True)]
    moved = [out + side * move for side in (1, -1) for out, move in zip(outputs, moves, strict=True)]
    gradients = inputs.output_gradients(index, moved)
    return [gradients[: len(outputs)], gradients[len(outputs) :]]


@contextmanager
def _listening(modules: Samples, rows: int, keep: Callable[[nn.Module, Sample], None]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:

            def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
                if torch.is_grad_enabled() and not out.requires_grad:  # frozen stages
                    out = out.requires_grad_()
                for sample in _samples_of(module, args, out, rows):
                    keep(module, sample)
                return out

            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _samples_of(module: nn.Module, args: tuple[Any, ...], out: Tensor, rows: int) -> Iterator[Sample]:
    split = args[-1] if isinstance(args[-1], Split) else None
    count = len(args[0])
    high = count if split is None else split.high
    for branch, part in (('high', slice(high)), ('low', slice(high, count))):
        if not len(range(count)[part]):
            continue
        real = None if split is None or split.real is None else split.real[part]
        if isinstance(module, QuantMatmul):
            yield _of_product(args[0][part], args[1][part], real, branch, part, out, rows)
        elif isinstance(module, QuantConv2d):
            yield _of_convolution(module, args[0], out, rows)
        else:
            yield _of_linear(args[0][part], real, branch, part, out, rows)


def _of_linear(x: Tensor, real: Tensor | None, branch: str, part: slice, out: Tensor, rows: int) -> Sample:
    places = torch.arange(x[..., 0].numel()) if real is None else real.flatten().nonzero()[:, 0].cpu()
    chosen = places[_spread(len(places), rows)].to(x.device)

    def locate(whole: Tensor) -> Tensor:
        return whole[part].flatten(0, -2)[chosen]

    return _sample(branch, x.detach().flatten(0, -2)[chosen], None, None, locate, out)


def _of_product(
    left: Tensor, right: Tensor, real: Tensor | None, branch: str, part: slice, out: Tensor, rows: int
) -> Sample:
    chosen = _spread(len(left), -(-rows // left.shape[-2])).to(left.device)

    def locate(whole: Tensor) -> Tensor:
        return whole[part][chosen]

    queries = None if real is None else real[chosen][:, None, :, None]
    return _sample(branch, left.detach()[chosen], right.detach()[chosen], queries, locate, out)


def _of_convolution(layer: QuantConv2d, x: Tensor, out: Tensor, rows: int) -> Sample:
    """Patches at evenly spread places of the output."""
    places = _spread(out[:, 0].numel(), rows)
    height, width = out.shape[2:]
    image, row, column = places // (height * width), places // width % height, places % width
    padding: Any = layer.padding
    (up, across), (down, right), (rate_y, rate_x) = layer.stride, padding, layer.dilation
    padded = F.pad(x.detach(), (right, right, down, down))
    ys = (row * up)[:, None, None] + (torch.arange(layer.kernel_size[0]) * rate_y)[None, :, None]
    xs = (column * across)[:, None, None] + (torch.arange(layer.kernel_size[1]) * rate_x)[None, None, :]
    patches = padded[image[:, None, None], :, ys, xs]  # (rows, kernel, kernel, C)

    def locate(whole: Tensor) -> Tensor:
        return whole[image, :, row, column]

    return _sample('high', patches.movedim(-1, 1).flatten(1), None, None, locate, out)


def _sample(
    branch: str,
    left: Tensor,
    right: Tensor | None,
    real: Tensor | None,
    locate: Callable[[Tensor], Tensor],
    out: Tensor,
) -> Sample:
    return Sample(branch, left, right, real, locate, out, locate(out.detach()).shape)


def _spread(count: int, most: int) -> Tensor:
    """(at most ``most``,) indices below ``count``, evenly spread."""
    return torch.arange(count) if count <= most else torch.arange(most) * count // most
