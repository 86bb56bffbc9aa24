"""Bits per layer, alone and with ratios: budgets hold on the model that the result describes."""

import sys

import pytest
from tiny_backbone import backbone

from mixaq_mmdet.models.backbone_cost import backbone_bops
from mixaq_mmdet.search.layer_costs import LayerCosts, mean_bits
from mixaq_mmdet.search.layer_search import (
    allocate_bits,
    plan_quant,
    ratio_losses,
    search_layers,
)

SHAPE = (64, 96)
WIDTHS = (2, 3, 4, 6, 8)
UNIFORM = {'method': 'MixQViT', 'w_bits': 4, 'a_bits': 4}


@pytest.fixture(scope='module')
def costs():
    return LayerCosts(backbone(UNIFORM), SHAPE)


@pytest.fixture(scope='module')
def measured(costs):
    importance = {name: 1 + index % 3 for index, name in enumerate(costs.chosen)}
    sensitivity = {name: {b: (1 + index % 5) / 4**b for b in WIDTHS} for index, name in enumerate(costs.chosen)}
    return importance, sensitivity


def standard(quant, **options):
    return backbone_bops(backbone(quant, **options), SHAPE).bit_operations('standard')


def test_costs_are_those_of_the_model(costs):
    assert costs.operations(costs.uniform(4)) == standard(UNIFORM)
    assert costs.operations(costs.uniform(4), [0.5, 0.3]) == standard(
        {**UNIFORM, 'low_a_bits': 2}, low_ratios=[0.5, 0.3]
    )


@pytest.mark.parametrize('budget', [0.8, 1.0])
def test_bits_alone(costs, measured, budget):
    plan = search_layers(costs, *measured, uniform_bits=4, budget=budget)
    found = standard(plan_quant(plan, 'MixQViT', 4))
    assert found <= budget * standard(UNIFORM)
    assert found / standard(UNIFORM) == pytest.approx(plan.relative_operations)
    assert plan.relative_size <= 1
    assert mean_bits(costs, plan.bits) <= 4.0001
    assert len(set(plan.bits.values())) > 1
    assert plan.low_ratios is None


def test_the_important_and_sensitive_get_more(costs, measured):
    importance, sensitivity = measured
    name = next(iter(costs.chosen))
    plain = allocate_bits(costs, importance, sensitivity, 4, 0.8)
    loved = allocate_bits(costs, {**importance, name: 1e4}, sensitivity, 4, 0.8)
    assert loved[name] == 8 > plain[name]


def test_bits_and_ratios_together(costs, measured):
    calls = []

    def losses_of(bits):
        calls.append(dict(bits))
        return {pair: {r: 0.01 * (pair + 1) * r**2 for r in (0.0, 0.2, 0.4, 0.6, 0.8)} for pair in range(2)}

    plan = search_layers(costs, *measured, uniform_bits=4, budget=0.7, losses_of=losses_of)
    assert len(calls) == len(plan.history) == 2
    assert calls[1] == plan.bits
    quant = plan_quant(plan, 'MixQViT', 4)
    for override in quant['overrides']:
        assert override['low_a_bits'] == max(override['a_bits'] // 2, 2)
    assert standard(quant, low_ratios=plan.low_ratios) <= 0.7 * standard(UNIFORM)
    assert all(entry['relative_operations'] <= 0.7 for entry in plan.history)


def test_ratio_losses_are_rises_and_never_fall(costs, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    model = backbone(UNIFORM)

    class Detector:
        backbone = model

    noise = iter([1.0, 0.9, 1.3, 1.2, 1.5, 1.6, 1.4])
    found = ratio_losses(Detector, lambda _: next(noise), (0.0, 0.4, 0.6, 0.8))
    assert found[0] == pytest.approx({0.0: 0.0, 0.4: 0.0, 0.6: 0.3, 0.8: 0.3})
    assert found[1] == pytest.approx({0.0: 0.0, 0.4: 0.5, 0.6: 0.6, 0.8: 0.6})
    assert model.low_ratios == (0.0, 0.0)
    assert '2/2' in capsys.readouterr().out
