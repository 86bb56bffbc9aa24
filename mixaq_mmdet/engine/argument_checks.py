"""What users write as arguments of loops, hooks and wrappers: a ValueError names what is wrong and what is known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

_GIVEN_BY_THE_RUNNER = ('runner', 'dataloader')


def type_name(kind: Any) -> str:
    """The bare name in a ``type`` of a config, which may be a text with a scope or, in pure Python configs, a class."""
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


def check_positive(value: Any, field: str, usual: int) -> int:
    """Return ``value`` if it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{field}={value!r} must be a whole number of at least 1; {usual} is usual')
    return value


def known_arguments_only(hint: str = '') -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of an ``__init__``: an argument that neither it nor a base it hands ``**kwargs`` to knows is refused.

    Args:
        hint: what else the message says.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def checked(self: Any, *args: Any, **kwargs: Any) -> None:
            classes = type(self).__mro__
            owner = next(index for index, cls in enumerate(classes) if vars(cls).get('__init__') is checked)
            known = _known_arguments(classes[owner:])
            unknown = sorted(set(kwargs) - set(known))
            if unknown:
                shown = [name for name in known if name not in _GIVEN_BY_THE_RUNNER]
                raise ValueError(f'{type(self).__name__} does not know {unknown}; its arguments are {shown}{hint}')
            init(self, *args, **kwargs)

        return checked

    return decorate


def _known_arguments(classes: tuple[type, ...]) -> list[str]:
    """Names of the arguments of the first constructor, and of the next as long as one takes ``**kwargs``."""
    known: list[str] = []
    for cls in classes:
        if '__init__' not in vars(cls):
            continue
        parameters = [*signature(vars(cls)['__init__']).parameters.values()][1:]
        known += [p.name for p in parameters if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
        if all(p.kind != Parameter.VAR_KEYWORD for p in parameters):
            break
    return known
