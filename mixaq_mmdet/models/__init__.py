"""Models: the two-branch backbone."""

from .two_branch_swin import TwoBranchSwin

__all__ = ['TwoBranchSwin']
