"""Quantizers, one file each; whatever file lies in this folder is imported, and so registered in QUANTIZERS."""

from importlib import import_module
from pkgutil import iter_modules

from .base import MODES, NotCalibratedError, Quantizer, quantizer_mode

for _file in iter_modules(__path__):
    import_module(f'{__name__}.{_file.name}')

__all__ = ['MODES', 'NotCalibratedError', 'Quantizer', 'quantizer_mode']
