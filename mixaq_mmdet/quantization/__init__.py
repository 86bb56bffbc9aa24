"""Quantization: pure math, quantizers, layers, methods."""

from .blocks import BranchAware, Fold, FoldingBlock, ProductAttention, SameProduct, WindowBlock
from .layers import (
    BranchQuantizers,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
    QuantMatmul,
    QuantWeight,
    Split,
    held_weights,
)
from .methods import Method, build_method, methods_that
from .overrides import check_head_options, check_overrides
from .prepare import prepare, replace_layers
from .quantizers import NotCalibratedError, Quantizer, quantizer_mode
from .query_key import QueryKeyLinear
from .state import CONFIG_BUFFER, DETECTOR_BUFFER, check_saved_config, encode_config

__all__ = [
    'CONFIG_BUFFER',
    'DETECTOR_BUFFER',
    'BranchAware',
    'BranchQuantizers',
    'Fold',
    'FoldingBlock',
    'Method',
    'NotCalibratedError',
    'ProductAttention',
    'QuantConv2d',
    'QuantConvTranspose2d',
    'QuantLinear',
    'QuantMatmul',
    'QuantWeight',
    'Quantizer',
    'QueryKeyLinear',
    'SameProduct',
    'Split',
    'WindowBlock',
    'build_method',
    'check_head_options',
    'check_overrides',
    'check_saved_config',
    'encode_config',
    'held_weights',
    'methods_that',
    'prepare',
    'quantizer_mode',
    'replace_layers',
]
