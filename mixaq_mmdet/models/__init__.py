"""Models: the two-branch backbone, and detectors around it."""

from .quant_detector import build_quant_detector
from .two_branch_swin import TwoBranchSwin
from .window_alignment import WindowAlignedMaskRCNN

__all__ = ['TwoBranchSwin', 'WindowAlignedMaskRCNN', 'build_quant_detector']
