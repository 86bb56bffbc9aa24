"""Integer kernels of the Swin backbone for CPUs with AVX2, built from C++ on first use; faster with VNNI and AMX.

    kernels, reason = load()           # kernels is None, with a one-line reason, where they cannot run or be built
    block = IntegerBlock(kernels, BlockWeights(...))
    block.run(stream, run)             # in place

Grids and weights are described by the tuples of ``deploy.layouts``; whoever converts a model fills them in.
"""

from ..layouts import BlockWeights, BranchGrids, Grid, LinearWeights, ProbabilityGrid
from .block import IntegerBlock
from .build import Kernels, load
from .layers import KernelLayer, layer_unsupported
from .maps import IntegerEmbedding, IntegerMerging, OutputCodes, output_norm
from .panels import unsupported
from .trace import trace_block
from .windows import assign, look, rank

__all__ = [
    'BlockWeights',
    'BranchGrids',
    'Grid',
    'IntegerBlock',
    'IntegerEmbedding',
    'IntegerMerging',
    'KernelLayer',
    'Kernels',
    'LinearWeights',
    'OutputCodes',
    'ProbabilityGrid',
    'assign',
    'layer_unsupported',
    'load',
    'look',
    'output_norm',
    'rank',
    'trace_block',
    'unsupported',
]
