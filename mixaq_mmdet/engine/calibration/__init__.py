"""Calibration: the calibrator, the images it sees, its journal on disk and the table it prints."""

from .calibrator import Calibrator, check_branches
from .parts import calibrated_parts, low_branch_left_behind, quantized_backbone, quantized_backbones, uncalibrated

__all__ = [
    'Calibrator',
    'calibrated_parts',
    'check_branches',
    'low_branch_left_behind',
    'quantized_backbone',
    'quantized_backbones',
    'uncalibrated',
]
