"""Means over the images of all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..methods.base import BlockInputs


def mean_over_ranks(tables: Sequence[Tensor], inputs: BlockInputs, dims: int = 2) -> Tensor:
    """Mean of tables of ``dims`` dimensions, one for each image of this rank, over the images of all ranks.

    A rank without images does not know the tables' shape, and learns it from the others.
    """
    shape = torch.tensor([float(size) for size in tables[0].shape] if tables else [0.0] * dims)
    inputs.average([shape])
    totals = torch.stack(list(tables)).sum(0) if tables else torch.zeros([int(size) for size in shape])
    images = totals.new_tensor(float(len(tables)))
    inputs.average([totals, images])
    return totals / images
