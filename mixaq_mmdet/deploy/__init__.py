"""Deployment: a calibrated backbone as integers, and what runs it."""

from .integer_swin import IntegerSwin

__all__ = ['IntegerSwin']
