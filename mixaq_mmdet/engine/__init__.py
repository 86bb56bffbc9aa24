"""Loops, hooks and wrappers that run a detector; importing registers them."""

from .hooks import CalibrationHook, ExactResumeHook, start_distillation
from .optim_wrapper import (
    SparsityAwareAmpOptimWrapper,
    SparsityAwareOptimWrapper,
    SparsityAwareOptimWrapperConstructor,
)
from .ptq_loop import PTQLoop

__all__ = [
    'CalibrationHook',
    'ExactResumeHook',
    'PTQLoop',
    'SparsityAwareAmpOptimWrapper',
    'SparsityAwareOptimWrapper',
    'SparsityAwareOptimWrapperConstructor',
    'start_distillation',
]
