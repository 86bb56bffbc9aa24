"""Allocation: the least loss within both budgets, equal to trying everything; budgets hold to the last bit."""

import itertools
import random

import pytest

from mixaq_mmdet.quantization import build_method
from mixaq_mmdet.search.allocation import Choice, allocate, bit_overrides, half_bits, total


def problem(seed, layers=5, widths=(2, 3, 4, 6, 8), scale=1):
    draw = random.Random(seed)
    items = {}
    for index in range(layers):
        macs, weights, weight = (
            draw.randint(1, 999) * scale + draw.randint(0, scale),
            draw.randint(1, 99),
            draw.random(),
        )
        items[f'layer{index}'] = [
            Choice(b, weight * draw.uniform(0.5, 1) / 4**b, weights * b, macs * b * b) for b in widths
        ]
    return items


def brute_force(items, size, operations):
    best = None
    for combination in itertools.product(*items.values()):
        if sum(c.size for c in combination) <= size and sum(c.operations for c in combination) <= operations:
            loss = sum(c.loss for c in combination)
            best = loss if best is None else min(best, loss)
    return best


def uniform(items, bits):
    picked = [next(c for c in choices if c.value == bits) for choices in items.values()]
    return sum(c.size for c in picked), sum(c.operations for c in picked)


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('scale', [1, 10_000_019])
def test_equal_to_brute_force(seed, scale):
    items = problem(seed, scale=scale)
    size, operations = uniform(items, 4)
    operations = operations * (3 + seed % 3) // 4
    chosen = allocate(items, size, operations)
    assert total(chosen, 'size') <= size
    assert total(chosen, 'operations') <= operations
    assert total(chosen, 'loss') == pytest.approx(brute_force(items, size, operations), rel=1e-6)


def test_a_budget_that_is_met_exactly_is_met():
    items = problem(3)
    size, operations = uniform(items, 4)
    assert total(allocate(items, size, operations), 'loss') <= sum(c[2].loss for c in items.values())
    one = {'only': [Choice(2, 1.0, 1, 10**15 + 1), Choice(4, 0.5, 1, 10**15 + 2)]}
    assert allocate(one, operations_budget=10**15 + 1)['only'].value == 2
    assert allocate(one, operations_budget=10**15 + 2)['only'].value == 4


def test_without_budgets_the_least_loss_wins():
    assert {c.value for c in allocate(problem(0)).values()} == {8}


def test_an_impossible_budget_says_by_how_much():
    items = problem(0)
    size, operations = uniform(items, 2)
    with pytest.raises(ValueError, match=r'budget: the cheapest choices need .* of operations, 2\.0'):
        allocate(items, size, operations // 2)
    with pytest.raises(ValueError, match="choices of 'a' are empty"):
        allocate({'a': []})


def test_overrides_are_what_a_method_takes():
    overrides = bit_overrides({'stages.0.blocks.0.attn.w_msa.qkv': 6, 'stages.0.blocks.0.ffn.layers.1': 3}, low=True)
    method = build_method({'method': 'MixQViT', 'w_bits': 4, 'a_bits': 4, 'overrides': overrides})
    qkv = method.roles('stages.0.blocks.0.attn.w_msa.qkv')
    assert (qkv['weight']['bits'], qkv['qkv_in']['bits'], qkv['qkv_in']['low_bits']) == (6, 6, 3)
    assert method.roles('stages.0.blocks.0.ffn.layers.1')['fc2_in']['low_bits'] == 2
    assert method.roles('stages.0.blocks.0.ffn.layers.0.0')['fc1_in']['bits'] == 4
    assert [half_bits(b) for b in (2, 3, 4, 6, 8)] == [2, 2, 2, 3, 4]
    assert 'low_a_bits' not in bit_overrides({'x': 4})[0]
