"""Options of importances are checked by name."""

import pytest

from mixaq_mmdet.windows.importance import build_importance


@pytest.mark.parametrize('name', ['L2', 'Std', 'Random'])
@pytest.mark.parametrize('value', ['no', 'False', 1, None])
def test_reverse_is_a_flag(name, value):
    with pytest.raises(ValueError, match=rf'importance\.reverse={value!r} must be True or False'):
        build_importance(dict(type=name, reverse=value))
