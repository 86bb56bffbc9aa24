"""Percentile: ranges that leave out a fixed share of the values at both ends."""

from __future__ import annotations

from typing import Any

from mixaq_mmdet.checks import check_number

from ...registry import QUANT_METHODS
from ..observers import PercentileRange
from ..quantizers.base import Quantizer, RangeFinder
from .base import Method


@QUANT_METHODS.register_module()
class Percentile(Method):
    """Uniform grids; activations between two percentiles, weights over their full range.

    Args:
        percentile: upper percentile of activations; the lower one is its mirror image.
    """

    def __init__(self, percentile: float = 99.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.percentile = check_number(percentile, 'quant.percentile', 50, 100, usual=99.99, above=True)
        self._activation_range = PercentileRange(percentile)

    def range_finder(self, quantizer: Quantizer) -> RangeFinder:
        return super().range_finder(quantizer) if quantizer.role == 'weight' else self._activation_range
