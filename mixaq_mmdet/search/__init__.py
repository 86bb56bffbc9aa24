"""From a budget to ratios: which windows may run low, pair by pair, at the least loss.

``space`` says what a candidate is, ``scoring`` what one is worth, ``study`` remembers every score, ``nsga`` and
``surrogate`` propose candidates, ``report`` writes what was found.
"""

from .space import Candidate, SearchSpace
from .study import Study

__all__ = ['Candidate', 'SearchSpace', 'Study']
