"""Low and prune ratios as users write them, checked and spelled out per block pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from mixaq_mmdet.checks import plain
from mixaq_mmdet.windows.assignment import hundredths

Ratios = float | Sequence[float] | np.ndarray | Tensor
RatioPair = tuple[tuple[float, ...], tuple[float, ...]]


def checked_ratios(low: Ratios, prune: Ratios, num_pairs: int) -> RatioPair:
    """Both ratios as tuples of ``num_pairs`` floats in whole hundredths; a ValueError names what is wrong."""
    low, prune = _spelled_out('low_ratios', low, num_pairs), _spelled_out('prune_ratios', prune, num_pairs)
    for pair, (r, p) in enumerate(zip(low, prune, strict=True)):
        if hundredths(r) + hundredths(p) > 100:
            raise ValueError(
                f'low_ratios[{pair}]={r} and prune_ratios[{pair}]={p} add up to more than 1; '
                'lower one of them: they are shares of the same windows'
            )
    return low, prune


def _spelled_out(field: str, value: Ratios, num_pairs: int) -> tuple[float, ...]:
    value = plain(value)
    if isinstance(value, Real):
        values: tuple[Any, ...] = (value,) * num_pairs
    elif isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        values = tuple(value)
    else:
        raise ValueError(f'{field}={value!r} must be a number or a list of {num_pairs} numbers')
    if len(values) != num_pairs:
        raise ValueError(f'{field} has {len(values)} values; give one number or {num_pairs}, one for each block pair')
    for pair, number in enumerate(values):
        if not isinstance(number, Real) or isinstance(number, bool) or not 0 <= float(number) <= 1:
            raise ValueError(f'{field}[{pair}]={number!r} must be a number in [0, 1]')
    return tuple(hundredths(float(number)) / 100 for number in values)
