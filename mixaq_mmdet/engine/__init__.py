"""Loops, hooks and wrappers that run a detector; importing registers them."""

from .hooks import CalibrationHook, CostHook, ExactResumeHook, WindowMapHook, start_distillation
from .optim_wrapper import (
    SparsityAwareAmpOptimWrapper,
    SparsityAwareOptimWrapper,
    SparsityAwareOptimWrapperConstructor,
)
from .ptq_loop import PTQLoop

__all__ = [
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
