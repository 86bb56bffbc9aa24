"""Hooks, one file each; importing registers them, and lets every Runner report what a test cost."""

from .calibration import CalibrationHook
from .cost import CostHook, report_after_tests
from .exact_resume import ExactResumeHook
from .window_map import WindowMapHook

report_after_tests()

__all__ = ['CalibrationHook', 'CostHook', 'ExactResumeHook', 'WindowMapHook']
