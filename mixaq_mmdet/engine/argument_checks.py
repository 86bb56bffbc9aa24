"""What users write as arguments of loops, hooks and wrappers: a ValueError names what is wrong and what is known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mixaq_mmdet.checks import constructor_arguments

_GIVEN_BY_THE_RUNNER = ('runner', 'dataloader')


def type_name(kind: Any) -> str:
    """The bare name in a ``type`` of a config, which may be a text with a scope or, in pure Python configs, a class."""
    return getattr(kind, '__name__', str(kind).rpartition('.')[2])


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
            known = constructor_arguments(classes[owner:])
            unknown = sorted(set(kwargs) - set(known))
            if unknown:
                shown = [name for name in known if name not in _GIVEN_BY_THE_RUNNER]
                raise ValueError(f'{type(self).__name__} does not know {unknown}; its arguments are {shown}{hint}')
            init(self, *args, **kwargs)

        return checked

    return decorate
