"""Hooks, one file each; importing registers them."""

from .exact_resume import ExactResumeHook

__all__ = ['ExactResumeHook']
