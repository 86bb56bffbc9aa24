"""Hooks, one file each; importing registers them."""

from .annealing import AnnealingHook
from .calibration import CalibrationHook
from .cost import CostHook
from .distillation import DistillationHook, start_distillation
from .exact_resume import ExactResumeHook
from .window_map import WindowMapHook

__all__ = [
    'AnnealingHook',
    'CalibrationHook',
    'CostHook',
    'DistillationHook',
    'ExactResumeHook',
    'WindowMapHook',
    'start_distillation',
]
