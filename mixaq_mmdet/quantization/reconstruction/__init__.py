"""Block reconstruction: training that brings what a block makes close to what its float twin makes.

``block.py`` holds what every reconstruction shares: targets, loss in units of its first value, steps that all ranks
take alike. ``low_rank.py`` trains compensations and intervals (AIQViT); ``weights.py`` trains the rounding of weights
and the scales of activations, under any of ``losses.py``.
"""

from .block import BlockReconstruction
from .losses import BlockLoss, GlobalAndLocal, LowRankFisher, MeanSquaredError, PerturbationHessian
from .low_rank import LowRankReconstruction, LowRankSchedule, compensations, interval_quantizers
from .rounding import ROUNDINGS
from .weights import WeightReconstruction, WeightSchedule, rounded_layers, scaled_quantizers

__all__ = [
    'ROUNDINGS',
    'BlockLoss',
    'BlockReconstruction',
    'GlobalAndLocal',
    'LowRankFisher',
    'LowRankReconstruction',
    'LowRankSchedule',
    'MeanSquaredError',
    'PerturbationHessian',
    'WeightReconstruction',
    'WeightSchedule',
    'compensations',
    'interval_quantizers',
    'rounded_layers',
    'scaled_quantizers',
]
