"""What runs a converted model: one class per engine, registered by the name that configs give.

A new one - an accelerator, another library - is one file: a subclass of ``Backend`` under a name of its own. It says
what it cannot run and gives a runner for what it can; everything else runs in the exact torch form of the part.
"""

from .base import BACKENDS, Backend, LayerRunner, Runner, WindowEngine, engines, pick
from .kernels import KernelsBackend
from .onednn import OnednnBackend
from .torch import TorchBackend

__all__ = [
    'BACKENDS',
    'Backend',
    'KernelsBackend',
    'LayerRunner',
    'OnednnBackend',
    'Runner',
    'TorchBackend',
    'WindowEngine',
    'engines',
    'pick',
]
