"""The kernels for whole maps - patch embedding, patch merging, ranking, output norms - in the backbone's terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mixaq_mmdet.windows.assignment import Assignment, TierCounts

from .layouts import Grid, LinearWeights

Size = tuple[int, int]


class KernelMaps:
    """Builds what stands in for float modules around the blocks.

    Args:
        package: ``deploy.kernels``.
        handle: what its ``load`` returned.
    """

    def __init__(self, package: Any, handle: Any) -> None:
        self.package, self.handle = package, handle

    def embedding(
        self, embed: Any, weights: LinearWeights, grid: Grid
    ) -> Callable[[Tensor], tuple[Tensor, Size]] | None:
        """The patch embedding with its norm; None where the kernel does not cover it."""
        kernel, stride = embed.projection.kernel_size, embed.projection.stride
        if kernel != stride or kernel[0] != kernel[1] or weights.codes.shape[1] % 4:
            return None
        norm = embed.norm
        gamma, beta, epsilon = (None, None, 1e-5) if norm is None else (norm.weight, norm.bias, norm.eps)
        return self.package.IntegerEmbedding(self.handle, weights, grid, gamma, beta, kernel[0], epsilon).run

    def merging(self, downsample: Any, weights: LinearWeights, grid: Grid) -> Callable[..., tuple[Tensor, Size]] | None:
        """A patch merging with its norm; None where the kernel does not cover it."""
        sampler, norm = downsample.sampler, downsample.norm
        if sampler.kernel_size != (2, 2) or sampler.stride != (2, 2) or norm is None:
            return None
        return self.package.IntegerMerging(self.handle, weights, norm.weight, norm.bias, grid, norm.eps).run

    def output(self, x: Tensor, norm: nn.LayerNorm, size: Size) -> Tensor:
        """(B, H * W, C) normed, as (B, C, H, W)."""
        return self.package.output_norm(self.handle, x, norm.weight, norm.bias, size, norm.eps)

    def rank(self, x: Tensor, content: Tensor, window: int, reverse: bool) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Scores, blank and order (B, windows) of both grids of a stream (B, H, W, C), by shift."""
        means = self.package.token_means(self.handle, x)
        shifts = (0, window // 2)
        return {shift: self.package.rank(self.handle, means, content, window, shift, reverse) for shift in shifts}

    def assign(self, order: Tensor, counts: TierCounts, size: Size, window: int, shift: int) -> Assignment:
        """The assignment of ranked windows (B, windows)."""
        return self.package.assign(self.handle, order, counts, size, window, shift)
