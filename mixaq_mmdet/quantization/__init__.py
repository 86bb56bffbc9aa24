"""Quantization: pure math, quantizers, layers, methods."""

from .layers import BranchQuantizers, QuantConv2d, QuantLinear, QuantMatmul, QuantWeight, held_weights
from .methods import Method, build_method
from .prepare import check_overrides, prepare, replace_layers
from .quantizers import NotCalibratedError, Quantizer, quantizer_mode
from .state import DETECTOR_BUFFER, check_saved_config, encode_config

__all__ = [
    'DETECTOR_BUFFER',
    'BranchQuantizers',
    'Method',
    'NotCalibratedError',
    'QuantConv2d',
    'QuantLinear',
    'QuantMatmul',
    'QuantWeight',
    'Quantizer',
    'build_method',
    'check_overrides',
    'check_saved_config',
    'encode_config',
    'held_weights',
    'prepare',
    'quantizer_mode',
    'replace_layers',
]
