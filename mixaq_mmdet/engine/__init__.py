"""Loops, hooks and wrappers that run a detector; importing registers them."""

from .hooks import CalibrationHook, ExactResumeHook
from .ptq_loop import PTQLoop

__all__ = ['CalibrationHook', 'ExactResumeHook', 'PTQLoop']
