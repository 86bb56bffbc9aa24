"""MSE: ranges of least squared quantization error."""

from __future__ import annotations

from ...registry import QUANT_METHODS
from ..observers import MSERange
from ..quantizers.base import Quantizer, RangeFinder
from .base import Method


@QUANT_METHODS.register_module()
class MSE(Method):
    """Uniform grids; every range is searched for the least squared error."""

    def range_finder(self, quantizer: Quantizer) -> RangeFinder:
        return MSERange()
