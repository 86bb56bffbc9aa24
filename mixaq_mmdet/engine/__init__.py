"""Loops, hooks and wrappers that run a detector; importing registers them."""

from .hooks import ExactResumeHook

__all__ = ['ExactResumeHook']
