"""Quantization methods, one file per paper; whatever file lies in this folder is imported, and so registered."""

from importlib import import_module
from pkgutil import iter_modules

from .base import BlockInputs, Method, build_method

for _file in iter_modules(__path__):
    import_module(f'{__name__}.{_file.name}')

__all__ = ['BlockInputs', 'Method', 'build_method']
