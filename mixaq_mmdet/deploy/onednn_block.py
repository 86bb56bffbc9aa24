"""A Swin block on torch's own oneDNN int8 operators, what lies between its products in few passes of plain torch.

What a grid does to the result of a product is folded into that product's steps and bias, so that it gives codes at
once; what a grid does to a norm, into the norm's weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.windows.assignment import Run, cut_run

from .layouts import BlockWeights, BranchGrids, Grid, Layer, LinearWeights, ProbabilityGrid
from .onednn_layer import FinishedLayer, FusedLayer, int8_layer
from .products import ExactLinear, bias_on, probability_values, step_of
from .tensor_checks import checked_in_place

SIGNED = 128
FAR_BELOW = -70.0
IN_STEPS = Grid(1.0, 0, 8)
"""Of results that are numbers of steps already, zero points and offsets included."""


class OnednnBlock:
    """The same interface as ``TorchBlock``.

    Args:
        weights: the block, its grids as :func:`folds_block` wants them.
    """

    def __init__(self, weights: BlockWeights) -> None:
        self.weights = weights
        self.tokens = weights.bias.shape[-1]
        high = Branch(weights, 0)
        self.branches = (high, Branch(weights, 1, high.packed))

    def run(self, stream: Tensor, run: Run) -> None:
        """Work on the windows of ``run``, rows of a float32 stream (B * H * W, C), in place."""
        checked_in_place(stream, 'stream', ('rows', self.weights.proj.codes.shape[0]))
        edges = sorted({0, run.high_windows, run.windows})
        for part in (run,) if len(edges) == 2 else cut_run(run, edges, self.tokens):
            self.branches[0 if part.high_windows else 1].run(stream, part)


def folds(grid: Grid) -> bool:
    """Whether the grid can be folded into what comes before it: steps are one, or one for each channel."""
    return grid.steps is None and grid.levels is None


def folds_block(weights: BlockWeights) -> bool:
    """Whether all grids but those of probabilities can."""
    return all(folds(grid) for branch in weights.grids for grid in branch if isinstance(grid, Grid))


class Branch:
    """The block with the grids of one branch.

    Args:
        weights: the block.
        number: 0 for the high branch, 1 for the low one.
        packed: the layers' weights as another branch has packed them.
    """

    def __init__(self, weights: BlockWeights, number: int, packed: dict[str, Tensor] | None = None) -> None:
        grids = weights.grids[number]
        # the exponential of what a mask leaves would be denormal, which takes some fifty times as long
        self.bias = weights.bias.clamp(min=FAR_BELOW) if plain(grids.attn) else weights.bias
        self.grids = grids
        self.heads, self.tokens = weights.num_heads, weights.bias.shape[-1]
        self.norm1 = NormedCodes(weights.norm1, number, grids.qkv_in, weights.epsilon)
        self.norm2 = NormedCodes(weights.norm2, number, grids.fc1_in, weights.epsilon)
        into = _Steps(grids, weights.scale, weights.proj.codes.shape[0])
        self.limits = into.limits if bool((into.limits < 255).any()) else None
        self.pad = None if weights.pad_qkv is None else into.codes(weights.pad_qkv)
        hidden = grids.fc2_in
        # an offset before rounding comes behind GELU, where no bias is
        self.hidden_codes = None if hidden.before is None else Codes(hidden)
        layers = {
            'qkv': Layer(into.weights(weights.qkv), grids.qkv_in, out_grid=IN_STEPS),
            'proj': Layer(weights.proj, grids.proj_in),
            'fc1': Layer(weights.fc1, grids.fc1_in, out_grid=hidden if hidden.before is None else None, gelu=True),
            'fc2': Layer(weights.fc2, hidden),
        }
        self.layers = {name: int8_layer(layer, (packed or {}).get(name)) for name, layer in layers.items()}
        self.shifts = _shifts(grids)
        self.logit_step = float(step_of(grids.q)) * float(step_of(grids.k))
        self.attended_codes = Codes(grids.proj_in, self.heads)
        self.factor = (
            step_of(grids.v) * (1.0 if grids.attn is None else step_of(grids.attn)) * self.attended_codes.factor
        )

    @property
    def packed(self) -> dict[str, Tensor]:
        """The layers' weights as the operators read them."""
        return {name: layer.product.packed for name, layer in self.layers.items()}

    def run(self, stream: Tensor, run: Run) -> None:
        """Work on windows that are all of this branch."""
        count = len(run.rows)
        # a row more, where there are padding tokens: theirs
        rows = run.rows if run.slots is None else F.pad(run.rows, (0, 1))
        gathered = stream.index_select(0, rows)
        tokens = gathered[:count]
        codes = self.layers['qkv'](self.norm1(gathered))
        if self.limits is not None:
            torch.minimum(codes, self.limits, out=codes)
        if run.slots is not None:
            assert self.pad is not None
            codes[count] = self.pad
            sources = torch.full((run.windows * self.tokens,), count)
            codes = codes.index_select(0, sources.index_copy_(0, run.slots, torch.arange(count)))
        attended = self._attend(codes.view(run.windows, self.tokens, 3, self.heads, -1), run)
        self.layers['proj'].add(attended if run.slots is None else attended.index_select(0, run.slots), tokens)
        hidden = self.layers['fc1'](self.norm2(tokens))
        self.layers['fc2'].add(hidden if self.hidden_codes is None else self.hidden_codes(hidden), tokens)
        stream.index_copy_(0, run.rows, tokens)

    def _attend(self, codes: Tensor, run: Run) -> Tensor:
        """Codes of q, k and v (windows, tokens, 3, heads, channels) to those of proj's input (windows * tokens, C)."""
        windows, tokens, _, heads, channels = codes.shape
        steps = SCRATCH.empty('steps', (3, windows, heads, tokens, channels)).copy_(codes.permute(2, 0, 3, 1, 4))
        q, k, v = steps.sub_(self.shifts).flatten(1, 2)
        attention = probabilities(partial(self._logits, q, k, run), self.grids.attn)
        place = (windows, heads, tokens, channels)
        out = SCRATCH.empty('out', (windows * heads, tokens, channels))
        if isinstance(self.factor, Tensor):
            torch.bmm(attention, v, out=out).view(place).mul_(self.factor).add_(self.attended_codes.offset)
        else:
            out.view(place).copy_(self.attended_codes.offset)
            out.baddbmm_(attention, v, alpha=self.factor)
        attended = uint8(out.view(place), self.attended_codes.bits)
        return attended.transpose(1, 2).reshape(windows * tokens, heads * channels)

    def _logits(self, q: Tensor, k: Tensor, run: Run) -> Tensor:
        """Of q and k in steps, (windows * heads, tokens, channels of a head), to (windows * heads, tokens, tokens)."""
        logits = SCRATCH.empty('logits', (len(q), self.tokens, self.tokens))
        logits.baddbmm_(q, k.transpose(1, 2), beta=0, alpha=self.logit_step)
        by_window = logits.view(run.windows, self.heads, self.tokens, self.tokens)
        for start, stop, kind in run.segments:
            by_window[start:stop].add_(self.bias[kind])
        return logits


class Int8Linear:
    """The layers of a ``TorchBlock`` on int8 operators; one whose input has levels stays as it is there.

    Args:
        weights: the layer.
        grids: of its input, in each branch.
    """

    def __init__(self, weights: LinearWeights, grids: Sequence[Grid]) -> None:
        self.exact = ExactLinear(weights, grids) if any(grid.levels is not None for grid in grids) else None
        self.layers: list[FusedLayer | FinishedLayer] = []
        self.biases = [bias_on(weights, grid).float() for grid in grids]
        if self.exact is None:
            bare = weights._replace(bias=torch.zeros_like(weights.bias))
            for grid in grids:
                packed = self.layers[0].product.packed if self.layers else None
                self.layers.append(int8_layer(Layer(bare, IN_STEPS._replace(zero_point=grid.zero_point)), packed))

    def __call__(self, steps: Tensor, grid: Grid, positions: Tensor | None = None, branch: int = 0) -> Tensor:
        """Map whole numbers (..., K), multiples of the grid's step, to float32 (..., N)."""
        if self.exact is not None:
            return self.exact(steps, grid, positions, branch)
        sums = self.layers[branch]((steps + grid.zero_point).to(torch.uint8))
        step = torch.as_tensor(step_of(grid, positions))
        return torch.addcmul(self.biases[branch], sums, step)


def uint8(steps: Tensor, bits: int) -> Tensor:
    """Codes - 128, not rounded yet, to uint8 codes; ``steps`` is overwritten.

    torch converts floats to int8 in a fifth of the time that it takes to uint8.
    """
    signed = steps.round_().clamp_(-SIGNED, 2**bits - 1 - SIGNED).to(torch.int8)
    return signed.bitwise_xor_(-SIGNED).view(torch.uint8)


class Codes:
    """Floats to codes of a grid: x * factor + offset is what :func:`uint8` takes.

    Args:
        grid: of one step, with or without offsets.
        heads: (heads, tokens, channels of a head) are the last dimensions of its inputs; channels if None.
    """

    def __init__(self, grid: Grid, heads: int | None = None) -> None:
        self.factor, self.bits = 1 / grid.scale, grid.bits
        offset = torch.tensor(float(grid.zero_point - SIGNED))
        if grid.before is not None:
            before = grid.before if heads is None else grid.before.view(heads, 1, -1)
            offset = before * self.factor + offset
        self.offset = offset

    def __call__(self, x: Tensor) -> Tensor:
        """uint8 of the same shape; ``x`` is overwritten."""
        return uint8(x.mul_(self.factor).add_(self.offset), self.bits)


class NormedCodes:
    """A norm to codes.

    Args:
        norm: (gamma, beta) of both branches.
        number: which of them.
        grid: of one step, with or without offsets.
        epsilon: of the norm.
    """

    def __init__(self, norm: tuple[Tensor, Tensor], number: int, grid: Grid, epsilon: float) -> None:
        gamma, beta = norm[0][number], norm[1][number]
        before = 0.0 if grid.before is None else grid.before
        self.gamma, self.beta = gamma / grid.scale, (beta + before) / grid.scale + (grid.zero_point - SIGNED)
        self.bits, self.epsilon = grid.bits, epsilon

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C) to uint8."""
        return uint8(F.layer_norm(x, x.shape[-1:], self.gamma, self.beta, self.epsilon), self.bits)


def plain(grid: ProbabilityGrid | None) -> bool:
    """Whether probabilities are on one uniform grid."""
    return grid is not None and not grid.steps_per_octave and grid.steps is None and grid.levels is None


def probabilities(logits: Callable[[], Tensor], grid: ProbabilityGrid | None) -> Tensor:
    """Softmax on its grid, in units of the grid's step, in fewer passes than ``products.probability_values``.

    On a uniform grid the largest logit of a row is not subtracted first, which takes as long as all the rest, unless
    a sum leaves the middle of float32's range.

    Args:
        logits: computes them, into a tensor that may be overwritten.
        grid: of the probabilities.
    """
    if grid is None or not plain(grid):
        return probability_values(logits().softmax(-1), grid)[0]
    attention = logits().exp_()
    sums = attention.sum(-1, keepdim=True)
    least, most = sums.aminmax()
    if float(least) > 1e-20 and float(most) < 1e20:
        attention.mul_(sums.mul_(grid.scale).reciprocal_()).round_()
    else:
        attention = logits().softmax(-1).mul_(1 / grid.scale).round_()
    highest = 2**grid.bits - 1 - grid.zero_point
    return attention if 1 / grid.scale < highest + 0.5 else attention.clamp_(max=highest)


class Scratch(threading.local):
    """Memory that runs of windows use one after another; new memory is mapped page by page, which takes longer."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A float32 tensor that keeps its values until the next one of this name."""
        count = prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < count:
            self.buffers[name] = torch.empty(count)
        return self.buffers[name][:count].view(shape)


SCRATCH = Scratch()


class _Steps:
    """From q, k and v to numbers of their grids' steps.

    Args:
        grids: of the branch.
        scale: factor of q.
        channels: of each of the three.
    """

    def __init__(self, grids: BranchGrids, scale: float, channels: int) -> None:
        factors, offsets, limits = [], [], []
        for grid, factor in ((grids.q, scale), (grids.k, 1.0), (grids.v, 1.0)):
            step = torch.as_tensor(step_of(grid))
            before = torch.zeros(()) if grid.before is None else grid.before
            factors.append(_spread(factor / step, channels))
            offsets.append(_spread(before / step + grid.zero_point, channels))
            limits.append(torch.full((channels,), 2**grid.bits - 1, dtype=torch.uint8))
        self.factors, self.offsets, self.limits = torch.cat(factors), torch.cat(offsets), torch.cat(limits)

    def weights(self, qkv: LinearWeights) -> LinearWeights:
        """The layer, its results in steps."""
        return qkv._replace(scale=qkv.scale * self.factors, bias=qkv.bias * self.factors + self.offsets)

    def codes(self, values: Tensor) -> Tensor:
        """Codes of values (3 * C,)."""
        steps = (values * self.factors + self.offsets).round().clamp(min=0)
        return torch.minimum(steps, self.limits).to(torch.uint8)


def _spread(values: Tensor, channels: int) -> Tensor:
    """A number, or one for each channel of a head, for all (channels,)."""
    return values.repeat(channels // values.numel())


def _shifts(grids: BranchGrids) -> Tensor:
    """What to subtract from codes of q, k and v, (3, 1, 1, 1, 1 or channels of a head).

    Offsets after rounding are numbers of steps as well: (c - z) s + a = (c - (z - a / s)) s. That of keys only adds the
    same to all logits of a query, and softmax drops it.
    """
    shifts = [torch.full((), float(grid.zero_point)) for grid in (grids.q, grids.k, grids.v)]
    for at, grid in ((0, grids.q), (2, grids.v)):
        if grid.after is not None:
            shifts[at] = shifts[at] - grid.after / step_of(grid)
    return torch.stack(torch.broadcast_tensors(*(shift.view(-1) for shift in shifts))).view(3, 1, 1, 1, -1)
