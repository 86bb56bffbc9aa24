"""Quantization: pure math, quantizers, layers, methods."""

from .layers import BranchQuantizers, QuantConv2d, QuantLinear, QuantMatmul, QuantWeight, held_weights
from .methods import Method, build_method
from .prepare import prepare, replace_layers
from .quantizers import NotCalibratedError, Quantizer, quantizer_mode
from .state import check_saved_config

__all__ = [
    'BranchQuantizers',
    'Method',
    'NotCalibratedError',
    'QuantConv2d',
    'QuantLinear',
    'QuantMatmul',
    'QuantWeight',
    'Quantizer',
    'build_method',
    'check_saved_config',
    'held_weights',
    'prepare',
    'quantizer_mode',
    'replace_layers',
]
