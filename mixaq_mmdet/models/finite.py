"""Images that hold NaN or infinity are refused: everything behind them would be NaN without a word."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_infinite(finite: bool) -> None:
    """Raise an error unless the images are finite."""
    if not finite:
        raise ValueError(
            'inputs hold NaN or infinite values; check the images and data_preprocessor.std '
            '(check_finite=True checks in train mode too)'
        )


def is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite."""
    # a sum is cheaper than a mask of the input's size, and not finite if any summand is not
    return bool(torch.isfinite(x.detach().sum())) or bool(torch.isfinite(x).all())
