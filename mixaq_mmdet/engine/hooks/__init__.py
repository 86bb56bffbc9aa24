"""Hooks, one file each; importing registers them."""

from .calibration import CalibrationHook
from .exact_resume import ExactResumeHook

__all__ = ['CalibrationHook', 'ExactResumeHook']
