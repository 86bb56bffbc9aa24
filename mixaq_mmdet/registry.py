"""Registries of the plugin and the one look-up that raises a helpful error.

Models, hooks, loops, optimizer wrappers and constructors live in mmengine's *root* registries: a class registered in
mmdet's child registries would be invisible to mmpretrain, while the root is searched from every scope.
The plug-in points of our own (importances, quantizers, methods, engines of converted models) are plain name tables.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import HOOKS, LOOPS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, Registry

IMPORTANCE = Registry('importance')
QUANTIZERS = Registry('quantizer')
QUANT_METHODS = Registry('quant_method')
BACKENDS = Registry('backend')

__all__ = [
    'BACKENDS',
    'HOOKS',
    'IMPORTANCE',
    'LOOPS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'QUANTIZERS',
    'QUANT_METHODS',
    'lookup',
]


def lookup(registry: Registry, name: Any, field: str | None = None) -> Any:
    """Return what ``registry`` holds under ``name``; an unknown name is a ValueError that lists the known ones.

    The table is read directly: ``Registry.get`` returns None for an unknown name and warns when a default scope is
    active that the root registry does not know.

    Args:
        registry: the name table.
        name: the key a user wrote.
        field: the config field it came from, for the message; by default the registry's own name.
    """
    table = registry.module_dict
    if not isinstance(name, str) or name not in table:
        raise ValueError(f'{field or registry.name}={name!r} is unknown; use one of {sorted(table)}')
    return table[name]
