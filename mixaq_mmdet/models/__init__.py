"""Models: the two-branch backbone."""

from .quant_detector import build_quant_detector
from .two_branch_swin import TwoBranchSwin

__all__ = ['TwoBranchSwin', 'build_quant_detector']
