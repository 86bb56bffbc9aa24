"""The look-up of names."""

import pytest

from mixaq_mmdet.registry import IMPORTANCE, QUANT_METHODS, lookup


def test_a_known_name_needs_no_field():
    assert lookup(QUANT_METHODS, 'RepQ').__name__ == 'RepQ'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((IMPORTANCE, 'nope'), r"^importance='nope' is unknown; use one of \[.*'L2'"),
        ((QUANT_METHODS, None), '^quant_method=None is unknown'),
        ((QUANT_METHODS, 'nope', 'quant.method'), r"^quant\.method='nope' is unknown"),
    ],
)
def test_an_unknown_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        lookup(*arguments)
