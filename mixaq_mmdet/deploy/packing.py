"""Integer weights at their own width: codes of 2 to 8 bits, side by side in bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes 0 .. 2^bits - 1, any shape and integer type, to a flat uint8 tensor of ``ceil(count * bits / 8)`` bytes."""
    values = codes.detach().flatten().to(torch.uint8).numpy()
    if bits == 8:
        return torch.from_numpy(values.copy())
    ones = np.unpackbits(values[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(ones.ravel()))


def unpack_codes(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`pack_codes`: int16 codes of ``shape``.

    Raises:
        ValueError: if the bytes are not as many as ``shape`` needs.
    """
    count = int(np.prod(shape))
    if packed.numel() != -(-count * bits // 8):
        raise ValueError(
            f'{packed.numel()} bytes of weights do not make {count} codes of {bits} bits; convert the model again'
        )
    if bits == 8:
        return packed.to(torch.int16).view(shape)
    ones = np.unpackbits(packed.numpy())[: count * bits].reshape(count, bits)
    values = np.packbits(np.pad(ones, ((0, 0), (8 - bits, 0))), axis=1)
    return torch.from_numpy(values).to(torch.int16).view(shape)
