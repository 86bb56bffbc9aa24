"""The C++ kernels of ``deploy.kernels`` as an engine: whole Swin blocks and what lies between them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from mixaq_mmdet.registry import BACKENDS
from mixaq_mmdet.windows.assignment import Assignment, TierCounts

from .. import kernels
from ..layouts import BlockWeights, Grid, Layer, LinearWeights
from ..parts.bytes import ByteImages, Normalization
from .base import Backend, Embedding, EmbedsBytes, Merging, ModelPart, OutputMap, Size


@BACKENDS.register_module(name='kernels')
class KernelsBackend(Backend):
    """AVX2, AVX-512 VNNI or AMX, whatever the CPU has.

    Args:
        library: what ``deploy.kernels.load`` returned.
    """

    name = 'kernels'
    runs = (BlockWeights, Layer)
    preference, layer_preference = 2, 1
    gain = (
        'the kernels, which run a Swin-T backbone 7.1 times as fast as stock mmdet in float32 where they have AVX-512 '
        'VNNI, and less with AVX2 (docs/performance.md); they need Linux, AVX2 and a C++ compiler'
    )

    def __init__(self, library: kernels.Kernels) -> None:
        self.library = library

    @classmethod
    def load(cls) -> tuple[Backend | None, str]:
        """Build the library on first use."""
        library, reason = kernels.load()
        return (None, reason) if library is None else (cls(library), '')

    def describe(self, reason: str) -> str:
        """Which instructions it takes."""
        return f'int8 ({self.library.instructions} kernels)'

    def refuses(self, part: ModelPart) -> str:
        """Sizes and grids that the kernels do not know."""
        if isinstance(part, Layer):
            return kernels.layer_unsupported(part) or ''
        return kernels.unsupported(part) or ''

    def block(self, weights: BlockWeights) -> kernels.IntegerBlock:
        """A block in one call."""
        return kernels.IntegerBlock(self.library, weights)

    def layer(self, layer: Layer) -> kernels.KernelLayer:
        """A layer in one call."""
        return kernels.KernelLayer(self.library, layer)

    def embedding(self, embed: Any, weights: LinearWeights, grid: Grid) -> Embedding | None:
        """Square patches side by side."""
        kernel, stride = embed.projection.kernel_size, embed.projection.stride
        if kernel != stride or kernel[0] != kernel[1] or weights.codes.shape[1] % 4:
            return None
        norm = embed.norm
        gamma, beta, epsilon = (None, None, 1e-5) if norm is None else (norm.weight, norm.bias, norm.eps)
        return KernelEmbedding(kernels.IntegerEmbedding(self.library, weights, grid, gamma, beta, kernel[0], epsilon))

    def merging(self, downsample: Any, weights: LinearWeights, grid: Grid) -> Merging | None:
        """Of 2 x 2 tokens."""
        sampler, norm = downsample.sampler, downsample.norm
        if sampler.kernel_size != (2, 2) or sampler.stride != (2, 2) or norm is None:
            return None
        return kernels.IntegerMerging(self.library, weights, norm.weight, norm.bias, grid, norm.eps).run

    def output(self, norm: nn.LayerNorm, grid: Grid | None = None) -> OutputMap | None:
        """Normed and transposed in one pass; codes stay in the order of tokens."""
        if grid is not None:
            return kernels.OutputCodes(self.library, norm.weight, norm.bias, grid, norm.eps).run
        return partial(self._output, norm)

    def _output(self, norm: nn.LayerNorm, x: Tensor, size: Size) -> Tensor:
        return kernels.output_norm(self.library, x, norm.weight, norm.bias, size, norm.eps)

    @property
    def windows(self) -> KernelWindows:
        """Ranking in one pass over the stream."""
        return KernelWindows(self.library)


class KernelEmbedding(EmbedsBytes):
    """The patch embedding of float images and of bytes.

    Args:
        embedding: with the weights of the layer.
    """

    def __init__(self, embedding: kernels.IntegerEmbedding) -> None:
        self._embedding = embedding
        self._codes: dict[Normalization, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor | ByteImages) -> tuple[Tensor, Size]:
        """Images (B, in_channels, H, W) to (B, H' * W', N) and (H', W')."""
        if isinstance(images, Tensor):
            return self._embedding.run(images)
        how = images.normalization
        if how not in self._codes:
            self._codes[how] = self._embedding.byte_codes(how.values(self._embedding.in_channels))
        return self._embedding.run_bytes(images.images, images.size, self._codes[how], how.reverse_channels)


class KernelWindows:
    """Looks at images, ranks and chooses windows with the kernels.

    Args:
        library: what ``deploy.kernels.load`` returned.
    """

    def __init__(self, library: kernels.Kernels) -> None:
        self.library = library

    def look(self, images: Tensor, patch: int) -> tuple[Tensor, bool]:
        """Where patches of images (B, C, H, W) have content, (B, H', W'), and whether all numbers are finite."""
        return kernels.look(self.library, images, patch)

    def rank(self, x: Tensor, content: Tensor, window: int, reverse: bool) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
        """Scores, blank and order (B, windows) of both grids of a stream (B, H, W, C), by shift."""
        return kernels.rank(self.library, x, content, window, reverse)

    def assign(self, order: Tensor, counts: TierCounts, size: Size, window: int, shift: int) -> Assignment:
        """The assignment of ranked windows (B, windows)."""
        return kernels.assign(self.library, order, counts, size, window, shift)
