"""Statistics of a tensor that can be merged, and the ranges found from them.

Two passes over the data: :class:`MinMaxObserver`, then :class:`HistogramObserver` between the ends it found. Minimum,
maximum and integer counts are exact and associative, so any split of the images over calls or ranks gives the same
statistics bit for bit. (A moving average would depend on the order and cannot be merged.)

Both see tensors as rows: one row per tensor, or one per index of ``axis`` (a channel, a token position).
A range reads :class:`Samples`: values with counts, from a histogram (bin centres) or exactly from a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 2048
_CHUNK = 1 << 20  # elements per histogram call: bounds the memory of the int64 bin indices


def as_rows(x: Tensor, axis: int | None) -> Tensor:
    """View ``x`` as (rows, elements): one row, or one per index of ``axis``."""
    if axis is None:
        return x.reshape(1, -1)
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def check_finite(x: Tensor, name: str) -> None:
    """Raise a ValueError naming the layer if ``x`` holds NaN or Inf."""
    low, high = torch.aminmax(x)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError(f'{name} saw NaN or Inf during calibration; check the checkpoint and the calibration images')


class MinMaxObserver:
    """Smallest and largest value per row, and how many values were seen."""

    def __init__(self, name: str, axis: int | None = None, rows: int = 1) -> None:
        """``name`` is the layer, for messages; ``rows`` is the size of ``axis``."""
        self.name = name
        self.axis = axis
        self.low = torch.full((rows,), torch.inf)
        self.high = torch.full((rows,), -torch.inf)
        self.count = torch.zeros((), dtype=torch.int64)

    def observe(self, x: Tensor) -> None:
        """Add a tensor; empty ones count as nothing."""
        if x.numel() == 0:
            return
        check_finite(x, self.name)
        low, high = _row_minmax(x.detach(), self.axis)
        self.low = torch.minimum(self.low.to(low.device), low)
        self.high = torch.maximum(self.high.to(high.device), high)
        self.count += x.numel()

    def merge(self, other: MinMaxObserver) -> None:
        """Add what another observer of the same tensor saw."""
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)
        self.count += other.count

    def state(self) -> list[tuple[str, Tensor]]:
        """(reduction, tensor) pairs: what ranks must all-reduce in place."""
        return [('min', self.low), ('max', self.high), ('sum', self.count)]


class HistogramObserver:
    """Integer counts of ``bins`` equal bins between the ends a :class:`MinMaxObserver` found."""

    def __init__(self, ends: MinMaxObserver, bins: int = BINS) -> None:
        if int(ends.count) == 0:
            raise ValueError(
                f'{ends.name} never saw data during calibration; use more calibration images, or exclude the layer '
                'with an override'
            )
        self.name = ends.name
        self.axis = ends.axis
        self.low = ends.low.clone()
        self.high = ends.high.clone()
        self.counts = torch.zeros(ends.low.numel(), bins, dtype=torch.int64)

    def observe(self, x: Tensor) -> None:
        """Add a tensor whose values lie between the ends; empty ones count as nothing."""
        if x.numel() == 0:
            return
        check_finite(x, self.name)
        rows = as_rows(x.detach(), self.axis)
        self.counts = self.counts.to(rows.device)
        step = max(_CHUNK // rows.shape[0], 1)
        for part in rows.split(step, dim=1):
            self.counts += self._count(part)

    def _count(self, part: Tensor) -> Tensor:
        rows, bins = self.counts.shape
        low = self.low.to(part.device)[:, None]
        width = (self.high - self.low).to(part.device)[:, None]
        width = torch.where(width > 0, width, torch.ones_like(width))
        index = ((part.float() - low) / width).mul_(bins).to(torch.int64).clamp_(0, bins - 1)
        index += torch.arange(rows, device=part.device)[:, None] * bins
        return torch.bincount(index.flatten(), minlength=rows * bins).view(rows, bins)

    def merge(self, other: HistogramObserver) -> None:
        """Add the counts of another observer with the same ends."""
        if not (torch.equal(self.low, other.low) and torch.equal(self.high, other.high)):
            raise ValueError(f'{self.name}: histograms with different ends cannot be merged; merge min and max first')
        self.counts += other.counts

    def state(self) -> list[tuple[str, Tensor]]:
        """(reduction, tensor) pairs: what ranks must all-reduce in place."""
        return [('sum', self.counts)]

    def samples(self) -> Samples:
        """Bin centres with their counts, on the CPU."""
        counts = self.counts.cpu()
        low, high = self.low.cpu()[:, None], self.high.cpu()[:, None]
        centres = (torch.arange(counts.shape[1]) + 0.5) / counts.shape[1]
        return Samples(low + centres * (high - low), counts, low[:, 0], high[:, 0])


@dataclass(frozen=True)
class Samples:
    """Values with counts, row by row.

    Attributes:
        values: (rows, K), ascending in every row.
        counts: (rows, K) whole numbers, or weights.
        low: (rows,) exact minimum.
        high: (rows,) exact maximum.
    """

    values: Tensor
    counts: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def exact(cls, x: Tensor, axis: int | None, name: str) -> Samples:
        """Every value of a tensor, sorted: for weights."""
        check_finite(x, name)
        values = as_rows(x.detach(), axis).float().sort(dim=1).values
        return cls(values, torch.ones_like(values, dtype=torch.int64), values[:, 0], values[:, -1])

    @classmethod
    def pooled(cls, values: Tensor, weights: Tensor, bins: int = 4 * BINS) -> Samples:
        """One row of ``bins`` values from scattered ones with weights (counts, or shares of an error)."""
        low, high = values.min(), values.max()
        width = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        index = ((values - low) / width * bins).long().clamp_(0, bins - 1).flatten()
        counts = torch.bincount(index, weights.expand_as(values).flatten().double(), minlength=bins)
        centres = low + (torch.arange(bins) + 0.5) / bins * (high - low)
        return cls(centres[None], counts[None], low[None], high[None])

    def together(self) -> Samples:
        """All rows as one."""
        return self if len(self.values) == 1 else Samples.pooled(self.values, self.counts)

    def quantile(self, share: float) -> Tensor:
        """(rows,) value of rank ``share * (N - 1)``, rounded; unlike ``torch.quantile`` for any number of elements."""
        total = self.counts.sum(dim=1)
        rank = torch.round(share * (total - 1).double())[:, None]
        index = torch.searchsorted(self.counts.cumsum(dim=1).double(), rank, right=True).clamp_(
            max=self.values.shape[1] - 1
        )
        # a bin centre may lie outside the exact ends only by rounding
        return self.values.gather(1, index)[:, 0].clamp(self.low, self.high)

    def squared_error(self, simulated: Tensor) -> Tensor:
        """(rows,) sum of squared differences to ``simulated`` (rows, K), weighted by the counts."""
        return ((simulated.double() - self.values.double()).square() * self.counts).sum(dim=1)

    def sqnr(self, simulated: Tensor) -> float:
        """Signal to quantization noise of all rows together, in dB."""
        signal = (self.values.double().square() * self.counts).sum()
        noise = self.squared_error(simulated).sum().clamp(min=1e-30)
        return float(10 * torch.log10(signal.clamp(min=1e-30) / noise))


Simulate = Callable[[Samples, Tensor, Tensor], Tensor]
"""(samples, low (rows,), high (rows,)) -> the samples' values as a quantizer of that range returns them."""


class MinMaxRange:
    """The full range."""

    def __call__(self, samples: Samples, simulate: Simulate) -> tuple[Tensor, Tensor]:
        return samples.low, samples.high


class PercentileRange:
    """The given percentile on both tails."""

    def __init__(self, percentile: float = 99.99) -> None:
        if not 50 < percentile <= 100:
            raise ValueError(f'percentile={percentile} must lie in (50, 100]; 99.99 is usual')
        self.share = percentile / 100

    def __call__(self, samples: Samples, simulate: Simulate) -> tuple[Tensor, Tensor]:
        return samples.quantile(1 - self.share), samples.quantile(self.share)


class PercentileSearchRange:
    """The pair of percentiles with the least squared error, per row (RepQ-ViT's released search)."""

    def __init__(self, shares: Sequence[float] = (0.999, 0.9999, 0.99999)) -> None:
        self.shares = tuple(shares)

    def __call__(self, samples: Samples, simulate: Simulate) -> tuple[Tensor, Tensor]:
        ranges = [(samples.quantile(1 - share), samples.quantile(share)) for share in self.shares]
        return _best(samples, simulate, ranges)


class MSERange:
    """The range of least squared error: each end in turn is moved inwards over a grid, the other one held."""

    def __init__(self, steps: int = 20, rounds: int = 2) -> None:
        if steps < 2 or rounds < 1:
            raise ValueError(f'steps={steps}, rounds={rounds}: the search needs steps >= 2 and rounds >= 1')
        self.steps = steps
        self.rounds = rounds

    def __call__(self, samples: Samples, simulate: Simulate) -> tuple[Tensor, Tensor]:
        low, high = samples.low, samples.high
        width = samples.high - samples.low
        for _ in range(self.rounds):
            shrink = [width * step / self.steps for step in range(self.steps)]
            low, high = _best(samples, simulate, [(low, torch.maximum(samples.high - s, low)) for s in shrink])
            low, high = _best(samples, simulate, [(torch.minimum(samples.low + s, high), high) for s in shrink])
        return low, high


def _best(samples: Samples, simulate: Simulate, ranges: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Per row the candidate of least squared error; the first one wins a tie."""
    errors = torch.stack([samples.squared_error(simulate(samples, low, high)) for low, high in ranges])
    choice = errors.argmin(dim=0, keepdim=True)
    lows = torch.stack([low for low, _ in ranges])
    highs = torch.stack([high for _, high in ranges])
    return lows.gather(0, choice)[0], highs.gather(0, choice)[0]


def _row_minmax(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    if axis is None:
        low, high = torch.aminmax(x)
        return low.float().view(1), high.float().view(1)
    others = [dim for dim in range(x.dim()) if dim != axis % x.dim()]
    return x.amin(others).float(), x.amax(others).float()
