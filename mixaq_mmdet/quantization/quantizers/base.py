"""What every quantizer is: a module that observes a tensor, is fitted to what it saw, then fake-quantizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..functional import check_bits
from ..observers import HistogramObserver, MinMaxObserver, Samples, Simulate

MODES = ('quantize', 'observe', 'float')
RangeFinder = Callable[[Samples, Simulate], tuple[Tensor, Tensor]]


class NotCalibratedError(RuntimeError):
    """A quantizer was used before it had a range."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f'not calibrated: {name} has no range yet; set load_from to a float checkpoint and add '
            'custom_hooks=[dict(type="CalibrationHook")] or run tools/train.py with '
            'train_cfg=dict(_delete_=True, type="PTQLoop"), or load a calibrated checkpoint'
        )


class Quantizer(nn.Module, ABC):
    """Base of the quantizers: the modes, the state and its protection; a subclass adds the grid.

    A subclass registers its parameters or buffers (shape ``self.shape``) and implements ``_grid`` (fake-quantize),
    ``simulate`` and ``_set_range``; one that does not work with ranges overrides ``fit`` instead of ``_set_range``.

    Modes: 'quantize'; 'observe' (collects statistics and passes the input on); 'float' (passes it on).

    Args:
        bits: code width, 2 to 8.
        axis: the channel axis of the tensors it will see.
        channels: size of that axis.
        per_channel: one grid per channel instead of one for the tensor.
        observe_per_channel: collect statistics per channel even where the grid is for the tensor.
        tokens: tokens of a window where the tensors come in window layout, otherwise 1.
        token_axis: which axis of a window's tensor counts its tokens, from the end.
        role: of the tensor in its layer, one of ``roles.ROLES``.
        branch: 'high' or 'low' for an activation; '' for a weight.
        name: layer, role and branch, for messages.
    """

    calibrated: Tensor
    bit_width: Tensor
    knows_slots = False
    """Whether ``_grid`` takes a third argument: the places of tokens where dimension 0 counts tokens, not windows."""
    spares_linear = False
    """Whether training spares memory by ``linear_with_low``."""
    override_roles: tuple[str, ...] = ()
    """Roles in which an override may put it in the place of a method's own quantizer."""
    reconstructed = False
    """Whether the grid is made for block reconstruction to train it; ``learnable`` and ``settle`` say how."""

    def __init__(
        self,
        bits: int,
        axis: int = -1,
        channels: int = 1,
        per_channel: bool = False,
        observe_per_channel: bool = False,
        tokens: int = 1,
        token_axis: int = -2,
        role: str = '',
        branch: str = '',
        name: str = 'quantizer',
    ) -> None:
        super().__init__()
        self.bits = check_bits(bits, f'{name}: bits')
        self.axis = axis if per_channel else None
        self.channel_axis = axis
        self.channels = channels
        self.tokens = tokens
        self.token_axis = token_axis
        self.shape: tuple[int, ...] = (channels,) if per_channel else ()
        self.role = role
        self.branch = branch
        self.name = name
        self.mode = 'quantize'
        self.observer: MinMaxObserver | HistogramObserver | None = None
        observes_channels = per_channel or observe_per_channel
        self.observe_axis = axis if observes_channels else None
        self.observe_rows = channels if observes_channels else 1
        self.ready = False
        self.register_buffer('calibrated', torch.zeros((), dtype=torch.uint8))
        self.register_buffer('bit_width', torch.tensor(self.bits, dtype=torch.uint8))

    def forward(self, x: Tensor, out: Tensor | None = None, slots: Tensor | None = None) -> Tensor:
        """Fake-quantize ``x`` (any shape, or empty).

        Args:
            x: the tensor.
            out: where to write, only without gradients.
            slots: (entries,) place of each token among windows * tokens, where dimension 0 counts tokens.
        """
        if self.mode == 'observe':
            assert self.observer is not None
            self.observer.observe(x)
            return x
        if self.mode == 'float':
            return x
        if not self.ready:
            raise NotCalibratedError(self.name)
        return self._grid(x, out, slots) if self.knows_slots else self._grid(x, out)  # type: ignore[call-arg]

    @property
    def place(self) -> tuple[str, ...]:
        """Role and, of an activation, branch."""
        return (self.role, self.branch) if self.branch else (self.role,)

    def usable(self) -> bool:
        """Whether :meth:`forward` would fake-quantize."""
        return self.mode == 'quantize' and self.ready

    def with_low(self, low: Quantizer, x: Tensor, high: int, slots: Tensor | None = None) -> Tensor:
        """Quantize the first ``high`` entries of ``x`` as this quantizer, the rest as ``low``; both may be empty."""
        high_slots, low_slots = (None, None) if slots is None else (slots[:high], slots[high:])
        return torch.cat([self(x[:high], slots=high_slots), low(x[high:], slots=low_slots)])

    def linear_with_low(
        self, low: Quantizer, x: Tensor, high: int, weight: Tensor, bias: Tensor | None, slots: Tensor | None = None
    ) -> Tensor:
        """``F.linear`` of what :meth:`with_low` returns."""
        return F.linear(self.with_low(low, x, high, slots), weight, bias)

    @abstractmethod
    def _grid(self, x: Tensor, out: Tensor | None) -> Tensor:
        """Fake-quantize ``x``."""

    @abstractmethod
    def simulate(self, samples: Samples, low: Tensor, high: Tensor) -> Tensor:
        """``samples.values`` (rows, K) as this quantizer would return them with the ranges low, high (rows,)."""

    @abstractmethod
    def _set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the grid from a range of ``self.shape``."""

    @abstractmethod
    def describe(self) -> str:
        """The grid in a few words, for the summary table."""

    def boundary_distance(self, x: Tensor) -> Tensor | None:
        """How far values are from where their code changes, in steps, same shape; None where the grid does not say."""
        return None

    def learnable(self) -> list[Tensor]:
        """The tensors that block reconstruction may train, as leaves that an optimizer changes in place."""
        return []

    def settle(self) -> None:
        """Bring the grid back to what is valid after a step of an optimizer."""

    def fit(self, samples: Samples, find_range: RangeFinder) -> None:
        """Set the grid from statistics of ``self.shape`` rows and become calibrated."""
        low, high = find_range(samples, self.simulate)
        self.set_range(low.view(self.shape), high.view(self.shape))

    @torch.no_grad()
    def values_of(self, samples: Samples) -> Tensor:
        """``samples.values`` (rows, K) as this quantizer returns them; the rows are its channels if it has any."""
        values = samples.values.to(self.calibrated.device)
        if self.axis is None:
            return self(values).cpu()
        return self(values.movedim(0, self.axis)).movedim(self.axis, 0).cpu()

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the grid from a range and become calibrated."""
        self._set_range(low.to(self.calibrated.device), high.to(self.calibrated.device))
        self.mark_calibrated()

    def mark_calibrated(self) -> None:
        """Declare the grid valid."""
        self.calibrated.fill_(1)
        self.ready = True

    def start_ranges(self) -> None:
        """Begin observing: first pass, minimum and maximum."""
        self.observer = MinMaxObserver(self.name, self.observe_axis, self.observe_rows)

    def start_histogram(self) -> None:
        """Second pass: counts between the ends the first one found."""
        assert isinstance(self.observer, MinMaxObserver)
        self.observer = HistogramObserver(self.observer)

    def finish(self) -> Samples:
        """Stop observing and return what was seen."""
        assert isinstance(self.observer, HistogramObserver)
        samples = self.observer.samples()
        self.observer = None
        return samples

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f'{prefix}bit_width')
        if saved is not None and int(saved) != self.bits:
            raise ValueError(
                f'{prefix.rstrip(".")} has {self.bits} bits in the config and {int(saved)} in the checkpoint; '
                'use the bits of the checkpoint, or calibrate the float checkpoint again'
            )
        if saved is None:
            # a float file: it loads, and what was calibrated on other weights is void
            self.calibrated.zero_()
            for name, value in [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]:
                state_dict.setdefault(prefix + name, value.detach())
        own = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        # a head whose num_classes was edited: mmengine warns and keeps what the model has, which is no grid
        resized = any(state_dict[prefix + n].shape != v.shape for n, v in own if prefix + n in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if resized:
            self.calibrated.zero_()
        self.ready = bool(self.calibrated)

    def extra_repr(self) -> str:
        return f'bits={self.bits}, calibrated={self.ready}'


@contextmanager
def quantizer_mode(quantizers: nn.Module | Iterable[Quantizer], mode: str) -> Iterator[None]:
    """Put quantizers, or all those inside a module, into ``mode`` for the duration."""
    if mode not in MODES:
        raise ValueError(f'mode={mode!r} is unknown; use one of {list(MODES)}')
    if isinstance(quantizers, nn.Module):
        quantizers = [module for module in quantizers.modules() if isinstance(module, Quantizer)]
    before = [(quantizer, quantizer.mode) for quantizer in quantizers]
    try:
        for quantizer, _ in before:
            quantizer.mode = mode
        yield
    finally:
        for quantizer, old in before:
            quantizer.mode = old
