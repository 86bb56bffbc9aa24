"""Masks pasted into the image by the portable kernels, in place of the loop of mmdet's ``FCNMaskHead``."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from torch import Tensor

from ..kernels.portable import PortableKernels
from ..kernels.structures import Pasting
from ..tensor_checks import checked


def paste_masks(
    kernels: PortableKernels,
    masks: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    threshold: float = 0.5,
    threads: int | None = None,
) -> Tensor:
    """Sample each mask over its box.

    Args:
        kernels: from ``load_portable``.
        masks: (N, h, w) float32 probabilities.
        boxes: (N, 4) float32: x1, y1, x2, y2 in pixels of the image; they may reach over it.
        size: (H, W) of the image.
        threshold: from which on a pixel belongs to the object, 0 or more.
        threads: threads; torch's number if not given.

    Returns:
        (N, H, W) bool.
    """
    count = len(masks)
    masks = checked(masks, 'masks', (count, 'h', 'w'))
    boxes = checked(boxes, 'boxes', (count, 4))
    if not (threshold >= 0 and torch.isfinite(boxes).all()):
        raise ValueError(f'threshold={threshold} has to be 0 or more, and boxes finite')
    images = untouched(count, size)
    call = Pasting(masks.data_ptr(), boxes.data_ptr(), *masks.shape, *size, threshold)
    if images.numel() and masks.numel():
        kernels.call('paste_masks', ctypes.addressof(call), images.data_ptr(), threads or torch.get_num_threads())
    return images


def untouched(count: int, size: tuple[int, int]) -> Tensor:
    """(count, H, W) of False in pages that nobody has touched: most of an image lies outside of its boxes.

    Not numpy's zeros, which ask for huge pages: a box of a few pixels then has two megabytes cleared, and where memory
    is in pieces the system tidies it up first.
    """
    length = count * size[0] * size[1]
    if not length:
        return torch.zeros(count, *size, dtype=torch.bool)
    private = {'flags': mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, 'MAP_PRIVATE') else {}
    pages = mmap.mmap(-1, length, **private)
    if hasattr(mmap, 'MADV_NOHUGEPAGE'):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.from_numpy(np.frombuffer(pages, dtype=np.bool_)).view(count, *size)


def reference(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """The same by mmdet's function: arguments and result of :func:`paste_masks`."""
    images = torch.zeros(len(masks), *size, dtype=torch.bool)
    for index in range(len(masks)):
        one = slice(index, index + 1)
        pixels, place = _do_paste_mask(masks[one, None], boxes[one], *size, skip_empty=True)
        images[(one, *place)] = pixels >= threshold
    return images
