"""When the backbone runs in its static form, and constants that tracers may read but never write."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import RLock
from typing import Any, TypeVar

import torch
from torch import Tensor

FORMS = ('auto', 'eager', 'static')
Built = TypeVar('Built')


def check_form(form: str) -> str:
    """``form`` itself; a ValueError for one that is unknown."""
    if form not in FORMS:
        raise ValueError(f'form={form!r} is unknown; use one of {list(FORMS)}')
    return form


def is_static(form: str, x: Tensor) -> bool:
    """Whether a forward of ``x`` takes the static form: 'auto' does on accelerators and while torch compiles."""
    return form == 'static' or (form == 'auto' and (x.device.type != 'cpu' or torch.compiler.is_compiling()))


def cached_constants(maxsize: int) -> Callable[[Callable[..., Built]], Callable[..., Built]]:
    """As ``lru_cache``, but a tracer's stand-ins for tensors are never kept, and what is kept may serve training.

    ``torch.export`` finds constants here that an earlier forward made; ``torch.compile`` builds them in its graph.
    """

    def decorate(build: Callable[..., Built]) -> Callable[..., Built]:
        kept: OrderedDict[Hashable, Built] = OrderedDict()
        lock = RLock()  # several threads may run one model; building a constant may ask for another

        @wraps(build)
        def cached(*key: Any) -> Built:
            if torch.compiler.is_dynamo_compiling():
                return build(*key)
            with lock:
                if key in kept:
                    kept.move_to_end(key)
                    return kept[key]
                if torch.compiler.is_compiling():
                    return build(*key)
                with torch.inference_mode(False):
                    kept[key] = made = build(*key)
                if len(kept) > maxsize:
                    kept.popitem(last=False)
                return made

        cached.kept = kept  # type: ignore[attr-defined]
        return cached

    return decorate
