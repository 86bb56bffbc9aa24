"""Quantization methods, one file per paper; whatever file lies in this folder is imported, and so registered."""

from importlib import import_module
from pkgutil import iter_modules

from ...registry import QUANT_METHODS
from .base import BlockInputs, Method, Mix, build_method

for _file in iter_modules(__path__):
    import_module(f'{__name__}.{_file.name}')

__all__ = ['BlockInputs', 'Method', 'Mix', 'build_method', 'methods_that']


def methods_that(trait: str) -> list[str]:
    """Names of the methods whose class attribute ``trait`` is true, such as 'trained'; the package's own come first."""
    return [name for name, cls in QUANT_METHODS.module_dict.items() if getattr(cls, trait)]
