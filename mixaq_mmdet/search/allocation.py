"""One choice per item under budgets: bits of layers, or ratios of block pairs, as an integer linear program.

Mix-QViT (arXiv 2501.06357) chooses one bit width per layer that minimises the sum of importance x sensitivity under a
size and an operations budget; it speaks of a quadratic program without giving it, the linear one is our choice.
Budgets are held exactly: solutions are checked in integers, and one that only fits within the solver's tolerance is
cut off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

MAX_CUTS = 1000
LOSS_SCALE = 1e5  # of the largest loss: the solver stops at an absolute gap of 1e-6


@dataclass(frozen=True)
class Choice:
    """What one item may become.

    Attributes:
        value: what is chosen: bits of a layer, or the ratio of a pair.
        loss: what it costs in accuracy.
        size: bits of storage.
        operations: bit operations per image.
    """

    value: float
    loss: float
    size: int
    operations: int


def allocate(
    items: Mapping[str, Sequence[Choice]], size_budget: int | None = None, operations_budget: int | None = None
) -> dict[str, Choice]:
    """One choice for each item with the least total loss within both budgets (None: unlimited).

    Raises:
        ValueError: if even the cheapest choices exceed a budget, or an item has no choices.
    """
    for name, choices in items.items():
        if not choices:
            raise ValueError(f'choices of {name!r} are empty; give at least one')
    budgets = {
        key: int(budget)
        for key, budget in (('size', size_budget), ('operations', operations_budget))
        if budget is not None
    }
    flat = [(name, choice) for name, choices in items.items() for choice in choices]
    constraints = [_one_each(list(items), [name for name, _ in flat])]
    for key, budget in budgets.items():
        least = {name: min(int(getattr(choice, key)) for choice in choices) for name, choices in items.items()}
        spare = budget - sum(least.values())
        if spare < 0:
            needed = budget - spare
            raise ValueError(
                f'budget: the cheapest choices need {needed:.4g} of {key}, {needed / max(budget, 1):.3f} times the '
                f'budget of {budget:.4g}; raise the budget or offer fewer bits'
            )
        # what a choice takes beyond its item's cheapest one, in the largest common unit: small whole numbers
        beyond = [int(getattr(choice, key)) - least[name] for name, choice in flat]
        unit = max(gcd(*beyond), 1)
        constraints.append(LinearConstraint(np.array([[b // unit for b in beyond]], float), ub=spare // unit))
    loss = np.array([choice.loss for _, choice in flat])
    return _solve(flat, loss * (LOSS_SCALE / max(np.abs(loss).max(), 1e-300)), constraints, budgets)


def total(chosen: Mapping[str, Choice], key: str) -> float:
    """Sum of ``loss``, ``size`` or ``operations`` over the choices."""
    return sum(getattr(choice, key) for choice in chosen.values())


def _solve(
    flat: list[tuple[str, Choice]], loss: np.ndarray, constraints: list[LinearConstraint], budgets: dict[str, int]
) -> dict[str, Choice]:
    for _ in range(MAX_CUTS):
        found = milp(
            loss,
            constraints=constraints,
            integrality=np.ones(len(flat)),
            bounds=Bounds(0, 1),
            options={'mip_rel_gap': 0},
        )
        if found.x is None:
            break
        picked = found.x > 0.5
        chosen = {name: choice for (name, choice), taken in zip(flat, picked, strict=True) if taken}
        if all(total(chosen, key) <= budget for key, budget in budgets.items()):
            return chosen
        constraints.append(LinearConstraint(picked.astype(float)[None], ub=picked.sum() - 1))
    raise ValueError(f'budgets {budgets} leave no allocation; raise one, or offer fewer bits')


def _one_each(names: list[str], owners: list[str]) -> LinearConstraint:
    index = {name: row for row, name in enumerate(names)}
    matrix = np.zeros((len(names), len(owners)))
    for column, owner in enumerate(owners):
        matrix[index[owner], column] = 1
    return LinearConstraint(matrix, lb=1, ub=1)


def bit_overrides(bits: Mapping[str, int], low: bool = False) -> list[dict[str, Any]]:
    """``quant.overrides`` that give each layer (by module path) its bits for weights and activations alike.

    Args:
        bits: bits by layer.
        low: give low windows half of the layer's bits.
    """
    return [
        {'pattern': name, 'w_bits': value, 'a_bits': value, **({'low_a_bits': half_bits(value)} if low else {})}
        for name, value in bits.items()
    ]


def half_bits(bits: int) -> int:
    """Bits of low windows: half of the layer's, but at least two."""
    return max(bits // 2, 2)
