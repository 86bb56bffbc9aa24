"""Loops, hooks and wrappers that run a detector; importing registers them."""

from .hooks import AnnealingHook, CalibrationHook, CostHook, ExactResumeHook, WindowMapHook, start_distillation
from .optim_wrapper import (
    SparsityAwareAmpOptimWrapper,
    SparsityAwareOptimWrapper,
    SparsityAwareOptimWrapperConstructor,
)
from .ptq_loop import PTQLoop

__all__ = [
    'AnnealingHook',
    'CalibrationHook',
    'CostHook',
    'ExactResumeHook',
    'PTQLoop',
    'SparsityAwareAmpOptimWrapper',
    'SparsityAwareOptimWrapper',
    'SparsityAwareOptimWrapperConstructor',
    'WindowMapHook',
    'start_distillation',
]
