"""From a budget to bits per layer, alone or together with low ratios per block pair: what ``--allocate`` runs.

Together, the budget is first split evenly (in ratio) between the two: bits are allocated under its root, ratios use
the rest; then, once more, bits given these ratios and ratios given these bits, both under the whole budget. The split,
the two rounds and the losses of ratios - the rise of the KL proxy when one pair alone gets them - are our choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from torch import nn

from mixaq_mmdet.engine.progress import watched

from .allocation import allocate, bit_overrides
from .layer_costs import RATIOS, LayerCosts

SCOPES = ('layers', 'both')
ROUNDS = 2


@dataclass(frozen=True)
class LayerPlan:
    """What was found.

    Attributes:
        bits: by layer.
        low_ratios: per block pair; None for bits alone.
        relative_operations: standard bit operations / those of the uniform model.
        relative_size: weight bits / those of the uniform model.
    """

    bits: dict[str, int]
    low_ratios: list[float] | None
    relative_operations: float
    relative_size: float
    history: list[dict[str, Any]] = field(default_factory=list)


def allocate_bits(
    costs: LayerCosts,
    importance: Mapping[str, float],
    sensitivity: Mapping[str, Mapping[int, float]],
    uniform_bits: int,
    budget: float,
    size_budget: float = 1.0,
    low_ratios: list[float] | None = None,
) -> dict[str, int]:
    """Bits by layer under shares of the uniform model's bit operations and weight size."""
    reference = costs.uniform(uniform_bits)
    operations = int(budget * costs.operations(reference)) - costs.fixed_operations
    size = int(size_budget * costs.size(reference))
    chosen = allocate(costs.bit_choices(importance, sensitivity, low_ratios), size, operations)
    return {name: int(choice.value) for name, choice in chosen.items()}


def allocate_ratios(
    costs: LayerCosts, bits: Mapping[str, int], losses: Mapping[int, Mapping[float, float]], operations: int
) -> list[float]:
    """Low ratios by pair, given the bits, under ``operations`` bit operations of the whole backbone."""
    chosen = allocate(costs.ratio_choices(bits, losses), operations_budget=operations - costs.outside_pairs(bits))
    return [chosen[str(pair)].value for pair in range(len(losses))]


def ratio_losses(
    detector: Any, measure: Callable[[nn.Module], float], ratios: tuple[float, ...] = RATIOS
) -> dict[int, dict[float, float]]:
    """Rise of a measured loss when one pair alone gets a low ratio, ``result[pair][ratio]``.

    Never negative and never smaller at a larger ratio: a measurement on few images may say otherwise, and an allocation
    would chase that noise (our choice).
    """
    backbone = detector.backbone
    with backbone.at_ratios(0.0):
        ground = measure(detector)
    found: dict[int, dict[float, float]] = {}
    for pair in watched('one pair alone at low ratios', range(backbone.num_pairs)):
        worst = 0.0
        for ratio in sorted(ratios):
            with backbone.at_ratios([ratio if p == pair else 0.0 for p in range(backbone.num_pairs)]):
                worst = worst if ratio == 0 else max(worst, measure(detector) - ground)
            found.setdefault(pair, {})[ratio] = worst
    return found


def search_layers(
    costs: LayerCosts,
    importance: Mapping[str, float],
    sensitivity: Mapping[str, Mapping[int, float]],
    uniform_bits: int,
    budget: float,
    size_budget: float = 1.0,
    losses_of: Callable[[Mapping[str, int]], dict[int, dict[float, float]]] | None = None,
) -> LayerPlan:
    """Bits alone, or (with ``losses_of``: bits to ``ratio_losses`` of a model that has them) bits and ratios."""
    reference = costs.uniform(uniform_bits)
    whole = costs.operations(reference)
    ratios: list[float] | None = None
    history: list[dict[str, Any]] = []
    if losses_of is None:
        bits = allocate_bits(costs, importance, sensitivity, uniform_bits, budget, size_budget)
    else:
        for number in range(ROUNDS):
            share = sqrt(budget) if number == 0 else budget
            bits = allocate_bits(costs, importance, sensitivity, uniform_bits, share, size_budget, ratios)
            ratios = allocate_ratios(costs, bits, losses_of(bits), int(budget * whole))
            relative = costs.operations(bits, ratios) / whole
            history.append({'bits': bits, 'low_ratios': ratios, 'relative_operations': relative})
    return LayerPlan(
        bits, ratios, costs.operations(bits, ratios) / whole, costs.size(bits) / max(costs.size(reference), 1), history
    )


def plan_quant(plan: LayerPlan, method: str, uniform_bits: int) -> dict[str, Any]:
    """``quant`` of a plan, for a config."""
    low = plan.low_ratios is not None
    quant: dict[str, Any] = {'method': method, 'w_bits': uniform_bits, 'a_bits': uniform_bits}
    return {**quant, 'overrides': bit_overrides(plan.bits, low)}
