"""Properties on drawn examples: few that are always the same in the usual suite, many new ones in the nightly one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def fuzzed(few: int, many: int, **drawn: st.SearchStrategy) -> Callable[[Callable], Callable]:
    """Make a test of a property.

    Args:
        few: examples in the usual suite.
        many: examples in the nightly one.
        **drawn: arguments of the property.
    """

    def decorate(check: Callable) -> Callable:
        @pytest.mark.parametrize('examples', [few, pytest.param(many, marks=pytest.mark.nightly)])
        def test(examples: int) -> None:
            options = {'max_examples': examples, 'deadline': None, 'database': None, 'derandomize': examples == few}
            settings(suppress_health_check=list(HealthCheck), **options)(given(**drawn)(check))()

        test.__doc__ = check.__doc__
        test.pytestmark = [*test.pytestmark, *getattr(check, 'pytestmark', [])]
        return test

    return decorate
