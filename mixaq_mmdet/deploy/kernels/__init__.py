"""Integer kernels of the Swin backbone for CPUs with AVX-512 VNNI, built from C++ on first use.

    kernels, reason = load()           # kernels is None, with a one-line reason, where they cannot run or be built
    block = IntegerBlock(kernels, BlockWeights(...))
    block.run(stream, run)             # in place

Grids and weights are described by the tuples of ``layouts``; whoever converts a model fills them from its quantizers.
"""

from .build import Kernels, load
from .layouts import BlockWeights, BranchGrids, Grid, LinearWeights, ProbabilityGrid, unsupported
from .operations import IntegerBlock, IntegerEmbedding, IntegerMerging, output_norm

__all__ = [
    'BlockWeights',
    'BranchGrids',
    'Grid',
    'IntegerBlock',
    'IntegerEmbedding',
    'IntegerMerging',
    'Kernels',
    'LinearWeights',
    'ProbabilityGrid',
    'load',
    'output_norm',
    'unsupported',
]
