"""The plan's arms are what their names say: equal cost, equal training, hooks that leave trained branches alone."""

from __future__ import annotations

import pytest
from evidence.experiment import resolved
from evidence.plans import qat

from mixaq_mmdet.windows.cost import LayerBits, SwinSpec, backbone_cost

MINI = SwinSpec(embed_dims=32, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), window_size=4)


def cost(low, prune) -> float:
    low, prune = ([value] * 6 if isinstance(value, float) else list(value) for value in (low, prune))
    return backbone_cost(MINI, (256, 256), low, prune, LayerBits(4, 4, 2)).relative('paper')


@pytest.mark.parametrize('ratio', list(qat.EQUAL_COST))
def test_pruning_costs_what_low_windows_cost(ratio):
    assert cost(0.0, qat.EQUAL_COST[ratio]) == pytest.approx(cost(ratio, 0.0), abs=0.003)


@pytest.mark.parametrize('name', list(qat.TIERS))
def test_three_tiers_cost_what_their_name_says(name):
    low, prune, alone = qat.TIERS[name]
    assert cost(low, prune) == pytest.approx(1 / float(name[:-1]), abs=0.003)
    assert cost(0.0, alone) == pytest.approx(cost(low, prune), abs=0.003)


def test_the_control_differs_in_nothing_but_the_ratios():
    saqa, control = (resolved(experiment).to_dict() for experiment in (qat.SAQA, qat.CONTROL))
    assert control['optim_wrapper'].pop('sampling') == 'fixed'
    assert saqa['optim_wrapper'].pop('sampling') == 'uniform_sum'
    assert saqa == control
    assert qat.SAQA.starts_from is qat.CONTROL.starts_from is qat.QAT


def test_the_float_control_differs_in_nothing_but_the_quantizers():
    qat_run, longer = (resolved(experiment).to_dict() for experiment in (qat.QAT, qat.LONGER))
    assert longer['model']['backbone'].pop('quant') is None
    assert qat_run['model']['backbone'].pop('quant')['method'] == 'OFQ'
    calibrates = [hook['type'] for hook in qat_run.pop('custom_hooks')]
    assert calibrates == ['ExactResumeHook', 'CalibrationHook']
    assert [hook['type'] for hook in longer.pop('custom_hooks')] == ['ExactResumeHook']
    names = {'quant'}  # the base's variable beside the model
    assert {key: value for key, value in qat_run.items() if key not in names} == {
        key: value for key, value in longer.items() if key not in names
    }


def test_evaluation_does_not_calibrate_what_was_trained():
    assert resolved(qat.ADAPTED[0.4]).custom_hooks == []
    assert resolved(qat.WITHOUT).custom_hooks[0].branches == 'low'
