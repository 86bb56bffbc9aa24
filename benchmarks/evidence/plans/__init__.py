"""Every module of this folder adds its ``STAGES`` and ``TOPICS``; docs/evidence.md tells what they hold."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def _gather(name: str) -> list[Any]:
    modules = [importlib.import_module(f'{__name__}.{found.name}') for found in pkgutil.iter_modules(__path__)]
    return [item for module in modules for item in getattr(module, name, ())]


STAGES = _gather('STAGES')
TOPICS = _gather('TOPICS')
