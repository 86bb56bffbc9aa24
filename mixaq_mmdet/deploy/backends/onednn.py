"""torch's own oneDNN int8 operators as an engine: Swin blocks, and convolutions and linear layers of necks and heads.

On CPUs without VNNI the operators' products saturate without a word, so the engine is there only if a product that
would saturate is exact.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from mixaq_mmdet.models.fast_layers import FastPatchMerging
from mixaq_mmdet.registry import BACKENDS

from ..layouts import BlockWeights, Geometry, Grid, Layer, LinearWeights
from ..onednn_block import Int8Linear, OnednnBlock, folds, folds_block
from ..onednn_layer import Product, int8_layer, needs_sums
from ..onednn_parts import OnednnEmbedding, OnednnMerging, OnednnOutput
from ..torch_block import TorchBlock
from .base import Backend, Embedding, LayerRunner, Merging, ModelPart, OutputMap, Runner

OPERATORS = ('qconv_prepack', 'qconv2d_pointwise', 'qlinear_prepack', 'qlinear_pointwise')


@BACKENDS.register_module(name='onednn')
class OnednnBackend(Backend):
    """Products of int8 operators; what lies between those of a block in plain torch."""

    name = 'onednn'
    runs = (BlockWeights, Layer)
    preference, layer_preference = 1, 2
    gain = "torch's int8 operators, which are faster than the float layers; they need a CPU with VNNI or AMX"

    @classmethod
    def load(cls) -> tuple[Backend | None, str]:
        """Ask for a product that saturates without VNNI."""
        reason = _missing()
        return (None, reason) if reason else (cls(), '')

    def describe(self, reason: str) -> str:
        """Whose operators they are, and why there are no faster ones."""
        return f'int8 (oneDNN, because {reason})' if reason else 'int8 (oneDNN)'

    def refuses(self, part: ModelPart) -> str:
        """Of layers outside blocks what one more output cannot mend."""
        if isinstance(part, BlockWeights):
            return ''
        if part.grid.steps is not None:
            return 'a step for each token'
        if part.geometry is not None and part.geometry.groups > 1 and needs_sums(part.weights):
            return 'groups with asymmetric weights'
        return ''

    def block(self, weights: BlockWeights) -> Runner:
        """From codes to codes; with a step for each token or levels between the products, floats are between them."""
        return OnednnBlock(weights) if folds_block(weights) else TorchBlock(weights, Int8Linear)

    def layer(self, layer: Layer) -> LayerRunner:
        """One call, or one and a pass in torch."""
        return int8_layer(layer)

    def embedding(self, embed: Any, weights: LinearWeights, grid: Grid) -> Embedding | None:
        """On a grid of one step: offsets would be by place of a patch."""
        return None if grid.learned else OnednnEmbedding(embed, weights, grid)

    def merging(self, downsample: Any, weights: LinearWeights, grid: Grid) -> Merging | None:
        """Of 2 x 2 tokens."""
        stacks = isinstance(downsample, FastPatchMerging) and downsample.stacks and downsample.norm is not None
        return OnednnMerging(downsample, weights, grid) if stacks and folds(grid) else None

    def output(self, norm: nn.LayerNorm, grid: Grid | None = None) -> OutputMap | None:
        """Normed and turned over while it is in the cache; codes stay in the order of tokens."""
        return OnednnOutput(norm, grid)


@lru_cache(maxsize=1)
def _missing() -> str:
    """Why the operators cannot be used here; '' if they can."""
    absent = [name for name in OPERATORS if not hasattr(torch.ops.onednn, name)]
    if absent:
        return f'this torch has no onednn.{absent[0]}'
    try:
        return '' if _exact() else 'int8 products of oneDNN saturate on this CPU, which has no VNNI'
    except RuntimeError as error:
        return f'oneDNN cannot run int8 products here: {str(error).splitlines()[0]}'


def _exact() -> bool:
    """Whether the largest products there are come out right: 255 * 127, two of which exceed 16 bits."""
    width, grid = 64, Grid(1.0, 0, 8)
    codes = torch.full((16, width), 127, dtype=torch.int8)
    weights = LinearWeights(codes, torch.ones(16), torch.zeros(16, dtype=torch.int32), torch.zeros(16))
    for geometry, shape in ((None, (32, width)), (Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1), (1, width, 8, 8))):
        product = Product(Layer(weights, grid, geometry), codes, weights.scale, None)
        if not bool((product(torch.full(shape, 255, dtype=torch.uint8)) == 255 * 127 * width).all()):
            return False
    return True
