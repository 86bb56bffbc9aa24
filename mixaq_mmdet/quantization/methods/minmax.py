"""MinMax: every range from the smallest to the largest value."""

from __future__ import annotations

from ...registry import QUANT_METHODS
from .base import Method


@QUANT_METHODS.register_module()
class MinMax(Method):
    """Uniform grids over the full range."""
