"""RoIAlign over the levels of a pyramid by the portable kernels, from and to floats or codes, with a backward.

Average pooling as ``mmcv.ops.RoIAlign`` with ``pool_mode='avg'``: every sample lies where mmcv's lies, sums differ by
rounding. ``reference`` states it by mmcv's operator.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmcv.ops import roi_align as mmcv_roi_align
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixaq_mmdet.quantization.functional import dequantize, quantize

from ..kernels.portable import PortableKernels
from ..kernels.structures import RoiAlign, RoiLevel
from ..layouts import Grid
from ..tensor_checks import checked

_IDENTITY = Grid(1.0, 0, 8)


class Pooling(NamedTuple):
    """How RoIs are pooled.

    Attributes:
        size: bins, rows and columns.
        scales: cells per pixel of each level.
        sampling_ratio: samples of a bin on each axis; 0 for one each cell, as many as the RoI needs.
        aligned: pixel centres at .5, as ``mmcv.ops.RoIAlign``.
    """

    size: tuple[int, int]
    scales: tuple[float, ...]
    sampling_ratio: int = 0
    aligned: bool = True


def roi_align(
    kernels: PortableKernels,
    maps: Sequence[Tensor],
    rois: Tensor,
    level_of: Tensor,
    pooling: Pooling,
    in_grid: Grid | None = None,
    out_grid: Grid | None = None,
    channels_last: bool | None = None,
    threads: int | None = None,
) -> Tensor:
    """Pool each RoI from its level.

    Args:
        kernels: from ``load_portable``.
        maps: of each level, (B, C, H, W) float32, or uint8 on ``in_grid``; channels first or last in memory.
        rois: (N, 5) float32: image, x1, y1, x2, y2 in pixels.
        level_of: (N,) int64.
        pooling: how.
        in_grid: of maps of codes.
        out_grid: of the result, if codes are wanted.
        channels_last: whether the result is channels last in memory; as the maps if not given.
        threads: threads; torch's number if not given.

    Returns:
        (N, C, rows, columns), float32, or uint8 on ``out_grid``.

    Raises:
        ValueError: if a tensor does not fit, or a RoI has a negative size or no level or image.
    """
    call = _Call(maps, rois, level_of, pooling, torch.float32 if in_grid is None else torch.uint8)
    last = call.channels_last if channels_last is None else channels_last
    shape = (len(rois), maps[0].shape[1], *pooling.size)
    out = torch.empty(
        shape,
        dtype=torch.float32 if out_grid is None else torch.uint8,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    structure = call.structure(last, in_grid or _IDENTITY, out_grid or _IDENTITY)
    kernels.call(
        'roi_align',
        ctypes.addressof(structure),
        out.data_ptr(),
        in_grid is not None,
        out_grid is not None,
        threads or torch.get_num_threads(),
    )
    return out


def roi_align_with_gradient(
    kernels: PortableKernels, maps: Sequence[Tensor], rois: Tensor, level_of: Tensor, pooling: Pooling
) -> Tensor:
    """:func:`roi_align` of float maps that passes gradients to all of them, to levels without a RoI zeros."""
    return _RoIAlignFunction.apply(kernels, pooling, rois, level_of, *maps)


def reference(
    maps: Sequence[Tensor],
    rois: Tensor,
    level_of: Tensor,
    pooling: Pooling,
    in_grid: Grid | None = None,
    out_grid: Grid | None = None,
) -> Tensor:
    """The same by mmcv's operator, level by level: arguments and result of :func:`roi_align`."""
    scale, zero_point = _parameters(in_grid)
    values = [x if in_grid is None else dequantize(x, scale, zero_point) for x in maps]
    pooled = values[0].new_zeros(len(rois), values[0].shape[1], *pooling.size)
    for level, (x, cells_per_pixel) in enumerate(zip(values, pooling.scales, strict=True)):
        chosen = (level_of == level).nonzero().squeeze(1)
        if len(chosen):
            pooled[chosen] = mmcv_roi_align(
                x.contiguous(),
                rois[chosen],
                pooling.size,
                cells_per_pixel,
                pooling.sampling_ratio,
                'avg',
                pooling.aligned,
            )
    if out_grid is None:
        return pooled
    return quantize(pooled, *_parameters(out_grid), out_grid.bits).to(torch.uint8)


def _parameters(grid: Grid | None) -> tuple[Tensor, Tensor]:
    grid = grid or _IDENTITY
    return torch.tensor(grid.scale), torch.tensor(float(grid.zero_point))


class _Call:
    """Tensors of a call, checked and in one layout; they live as long as it does."""

    def __init__(
        self, maps: Sequence[Tensor], rois: Tensor, level_of: Tensor, pooling: Pooling, dtype: torch.dtype
    ) -> None:
        if len(maps) != len(pooling.scales) or not maps:
            raise ValueError(f'{len(maps)} maps but {len(pooling.scales)} scales; give one scale for each map')
        self.pooling = pooling
        # a map of one channel or one cell is both
        self.channels_last = not all(x.is_contiguous() for x in maps)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = (*maps[0].shape[:2], 'height', 'width') if maps[0].dim() == 4 else ('B', 'C', 'height', 'width')
        self.maps = [checked(x, f'map {level}', shape, dtype, layout) for level, x in enumerate(maps)]
        self.rois = checked(rois, 'rois', ('N', 5))
        self.level_of = checked(level_of, 'level_of', (len(rois),), torch.int64)

    def structure(
        self, pooled_channels_last: bool, in_grid: Grid = _IDENTITY, out_grid: Grid = _IDENTITY
    ) -> ctypes.Structure:
        """What the kernels read; ``self`` must outlive it."""
        levels = (RoiLevel * len(self.maps))(
            *(
                RoiLevel(x.data_ptr(), *x.shape[2:], scale)
                for x, scale in zip(self.maps, self.pooling.scales, strict=True)
            )
        )
        return RoiAlign(
            levels,
            len(levels),
            *self.maps[0].shape[:2],
            self.rois.data_ptr(),
            self.level_of.data_ptr(),
            len(self.rois),
            *self.pooling.size,
            self.pooling.sampling_ratio,
            self.pooling.aligned,
            self.channels_last,
            pooled_channels_last,
            in_grid.scale,
            in_grid.zero_point,
            1 / out_grid.scale,
            out_grid.zero_point,
            2**out_grid.bits - 1,
        )


class _RoIAlignFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernels: PortableKernels, pooling: Pooling, rois: Tensor, level_of: Tensor, *maps: Tensor
    ) -> Tensor:
        ctx.kernels, ctx.pooling = kernels, pooling
        ctx.shapes = [x.shape for x in maps]
        ctx.layout = torch.contiguous_format if all(x.is_contiguous() for x in maps) else torch.channels_last
        ctx.save_for_backward(rois, level_of)
        return roi_align(kernels, maps, rois, level_of, pooling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rois, level_of = ctx.saved_tensors
        maps = [torch.empty(shape, memory_format=ctx.layout) for shape in ctx.shapes]
        last = not gradient.is_contiguous() and gradient.is_contiguous(memory_format=torch.channels_last)
        gradient = gradient.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        structure = _Call(maps, rois, level_of, ctx.pooling, torch.float32).structure(last)
        ctx.kernels.call(
            'roi_align_backward', ctypes.addressof(structure), gradient.data_ptr(), torch.get_num_threads()
        )
        return None, None, None, None, *maps
