"""What a converted detector is made of beside its products: each part with the torch form that it replaces."""

from .bytes import use_bytes
from .heads import use_kernels
from .roi_extractor import KernelRoIExtractor

__all__ = ['KernelRoIExtractor', 'use_bytes', 'use_kernels']
