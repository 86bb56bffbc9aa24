"""Checks of what users write: a ValueError names the field, what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import Parameter, signature
from math import inf
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor


def check_number(
    value: Any, field: str, least: float = 0, most: float = inf, usual: Any = None, above: bool = False
) -> Any:
    """Return ``value`` if it is a number from ``least`` (or above it) to ``most``."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not (least < value <= most if above else least <= value <= most):
        limits = f'lie in {"(" if above else "["}{least}, {most}]' if most < inf else f'be at least {least}'
        hint = '' if usual is None else f'; {usual} is usual'
        raise ValueError(f'{field}={value!r} must {limits}{hint}')
    return value


def check_count(value: Any, field: str) -> int:
    """Return ``value`` if it is a whole number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f'{field}={value!r} must be a whole number of at least 0')
    return value


def check_positive(value: Any, field: str, usual: int) -> int:
    """Return ``value`` if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{field}={value!r} must be a whole number of at least 1; {usual} is usual')
    return value


def check_flag(value: Any, field: str) -> bool:
    """Return ``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f'{field}={value!r} must be True or False')
    return value


def check_list(value: Any, field: str, example: str) -> list[Any]:
    """``value`` as a list; a text, a dict and what cannot be listed are refused."""
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise ValueError(f'{field}={value!r} must be a list such as {example}')
    return list(value)


def check_mapping(value: Any, field: str, example: str) -> dict[str, Any]:
    """``value`` as a dict."""
    if not isinstance(value, Mapping):
        raise ValueError(f'{field}={value!r} must be a dict such as {example}')
    return dict(value)


def constructor_arguments(classes: Sequence[type]) -> list[str]:
    """Names of the arguments of the first constructor, and of the next as long as one takes ``**kwargs``.

    Args:
        classes: a class and its bases in the order of ``__mro__``, or the last of them.
    """
    known: list[str] = []
    for cls in classes:
        if '__init__' not in vars(cls):
            continue
        parameters = [*signature(vars(cls)['__init__']).parameters.values()][1:]
        known += [p.name for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        if all(p.kind != Parameter.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(known))


def plain(value: Any) -> Any:
    """``value`` with whatever in it is of numpy or torch as Python's own numbers, booleans and lists."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value
