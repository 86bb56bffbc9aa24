"""Quantization: pure math, quantizers, layers, methods."""

from .layers import BranchQuantizers, QuantConv2d, QuantLinear, QuantMatmul, QuantWeight, held_weights
from .methods import Method, build_method, methods_that
from .overrides import check_overrides
from .prepare import prepare, replace_layers
from .quantizers import NotCalibratedError, Quantizer, quantizer_mode
from .state import CONFIG_BUFFER, DETECTOR_BUFFER, check_saved_config, encode_config

__all__ = [
    'CONFIG_BUFFER',
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
    'methods_that',
    'prepare',
    'quantizer_mode',
    'replace_layers',
]
