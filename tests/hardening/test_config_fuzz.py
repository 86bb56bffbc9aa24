"""Whatever a user combines in a config either runs or is a ValueError that names the field."""

from __future__ import annotations

import pytest
from config_cases import OF_BACKBONE, OF_METHOD, WRONG, Case, cases, run
from hypothesis import HealthCheck, example, given, settings
from mmdet.utils import register_all_modules

register_all_modules()
# initialisers of heads looked for "weight" in what they found inside a layer, quantizers included
LSQ = {'method': 'LSQ', 'w_bits': 4, 'a_bits': 4}
LEARNED_HEADS = Case('MaskRCNN', None, LSQ, {}, (1, 3, 32, 32), None)
BOTH = Case('CascadeRCNN', {**LSQ, 'low_a_bits': 2}, LSQ, {'low_ratios': 0.5}, (1, 3, 40, 32), None)
QUERIES = Case('Mask2Former', LSQ, None, {'low_ratios': 0.5, 'prune_ratios': 0.3}, (1, 3, 24, 48), None)
COMMON = {'deadline': None, 'suppress_health_check': list(HealthCheck), 'database': None}


def check(case: Case) -> None:
    """A right config runs; a wrong one is refused by the name of its field."""
    if case.fault is None:
        run(case)
        return
    with pytest.raises(ValueError, match=case.named):
        run(case)


@settings(max_examples=40, derandomize=True, **COMMON)
@example(LEARNED_HEADS)
@example(BOTH)
@example(QUERIES)
@given(cases())
def test_a_config_runs_or_names_its_field(case):
    check(case)


@pytest.mark.nightly
@settings(max_examples=500, **COMMON)
@given(cases())
def test_five_hundred_configs_run_or_name_their_field(case):
    check(case)


@pytest.mark.parametrize(('field', 'value'), [(field, value) for field in WRONG for value in WRONG[field]])
def test_every_wrong_value_names_its_field(field, value):
    quant = {'method': OF_METHOD.get(field, ('RepQ',))[0]}
    options, shape = {}, (1, 3, 16, 16)
    if field == 'quant':
        quant = value
    elif field == 'inputs':
        shape = value
    elif field in OF_BACKBONE:
        options[field] = value
    elif value == 'missing':
        quant = {'w_bits': 4}
    else:
        quant[field] = 5 if value == 'a_bits' else value
        quant.setdefault('a_bits', 4)
    check(Case('backbone', quant, None, options, shape, field))
