"""mmdet's RoI extractor with RoIAlign by the portable kernels, in training and testing on CPUs."""

from __future__ import annotations

import logging

import torch
from mmcv.ops import RoIAlign
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.logging import print_log
from torch import Tensor

from mixaq_mmdet.registry import MODELS

from ..kernels.portable import PortableKernels, load_portable
from ..layouts import Grid
from .roi_align import Pooling, roi_align, roi_align_with_gradient


@MODELS.register_module()
class KernelRoIExtractor(SingleRoIExtractor):
    """``SingleRoIExtractor`` with threads and all levels in one call on the CPU; same arguments, same results.

    Everything else is left to stock: other devices, tracing and export, RoI layers that are not average RoIAlign, and
    machines without a C++ compiler. Maps in half precision, which mmcv's RoIAlign refuses in bfloat16, are pooled in
    float32 and returned as they came::

        roi_head=dict(bbox_roi_extractor=dict(type='KernelRoIExtractor'),
                      mask_roi_extractor=dict(type='KernelRoIExtractor'))
    """

    codes: tuple[Grid, bool] | None = None

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Pool RoIs.

        Args:
            feats: (B, C, H, W) of each level.
            rois: (N, 5): image, x1, y1, x2, y2 in pixels.
            roi_scale_factor: by which RoIs grow around their centres after they have been given their levels.

        Returns:
            (N, C, rows, columns).
        """
        pooling = self._pooling(len(feats))
        if pooling is None or not _on_cpu(feats) or not (kernels := _kernels()):
            # mmcv reads channels-last maps as if they were channels first
            return super().forward(tuple(x.contiguous() for x in feats), rois, roi_scale_factor)
        dtype = feats[0].dtype
        rois = rois.float()
        if len(feats) == 1:
            level_of = rois.new_zeros(len(rois), dtype=torch.int64)
        else:
            level_of = self.map_roi_levels(rois, len(feats))
            if roi_scale_factor is not None:
                rois = self.roi_rescale(rois, roi_scale_factor)
        maps = [x.float() for x in feats]
        if self.codes is not None:
            grid, last = self.codes
            return roi_align(kernels, maps, rois, level_of, pooling, out_grid=grid, channels_last=last)
        return roi_align_with_gradient(kernels, maps, rois, level_of, pooling).to(dtype)

    def hand_over(self, grid: Grid | None, channels_last: bool) -> None:
        """Give codes of ``grid`` in this layout from now on, floats for None; where stock pools, floats anyway."""
        self.codes = None if grid is None else (grid, channels_last)

    def _pooling(self, levels: int) -> Pooling | None:
        """What the first ``levels`` RoI layers do, if it is average RoIAlign of one kind."""
        layers = list(self.roi_layers)[:levels]
        if not all(type(layer) is RoIAlign for layer in layers):
            return None
        kinds = {(x.output_size, x.sampling_ratio, x.aligned, x.pool_mode, x.use_torchvision) for x in layers}
        if len(layers) != levels or len(kinds) != 1:
            return None
        size, sampling_ratio, aligned, mode, by_torchvision = kinds.pop()
        if mode != 'avg' or by_torchvision:
            return None
        return Pooling(size, tuple(layer.spatial_scale for layer in layers), sampling_ratio, aligned)


def _on_cpu(feats: tuple[Tensor, ...]) -> bool:
    """Whether these are maps of a CPU whose addresses may be read now."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return False
    return all(x.device.type == 'cpu' and x.dtype in (torch.float32, torch.bfloat16, torch.float16) for x in feats)


def _kernels() -> PortableKernels | None:
    kernels, reason = load_portable()
    if kernels is None:
        print_log(f'KernelRoIExtractor: as stock, {reason}', logger='current', level=logging.WARNING)
    return kernels
