"""Deployment: a calibrated model as integers, and what runs it."""

from .converted import convert_model
from .integer_swin import IntegerSwin
from .parts import KernelRoIExtractor

__all__ = ['IntegerSwin', 'KernelRoIExtractor', 'convert_model']
