"""benchmarks/latency_front.py: points of two fronts, timed together."""

from __future__ import annotations

import argparse
from contextlib import contextmanager

import latency_front
import pytest
import torch


class Counting:
    """A backbone that remembers the ratios of every forward."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    @contextmanager
    def at_ratios(self, low, prune):
        self.ratios = low, prune
        yield self

    def __call__(self, image: torch.Tensor) -> None:
        self.seen.append(self.ratios)


def point(latency: float, low: float, prune: float, ap: float = 40.0) -> dict:
    return {'latency': latency, 'low_ratios': [low, 0.0], 'prune_ratios': [prune, 0.0], 'map': ap}


def test_points_are_spread_between_the_ends():
    front = [point(latency, 0, 0) for latency in range(9)]
    assert [p['latency'] for p in latency_front.spread(front, 3)] == [8, 4, 0]
    assert [p['latency'] for p in latency_front.spread(front[:2], 3)] == [1, 0]


def test_every_point_runs_at_its_ratios_on_its_own_tier():
    backbones = {'int8': Counting(), 'bf16': Counting()}
    fronts = {'bf16': [point(2, 0.5, 0.2), point(1, 0, 0)], 'int8': [point(1, 0, 0.4)]}
    points = latency_front.measure(backbones, fronts, (8, 8), rounds=2)
    assert len(points) == 3
    whole = ([0.0, 0.0], [0.0, 0.0])
    assert sorted(backbones['int8'].seen) == sorted([whole, ([0, 0.0], [0.4, 0.0])] * 3)
    assert sorted(backbones['bf16'].seen) == sorted([([0.5, 0.0], [0.2, 0.0]), whole] * 3)
    tiers = {tuple(p['tiers']) for p in points}
    assert tiers == {('bf16 high', 'int8 low', 'skipped'), ('bf16 high',), ('int8 high', 'skipped')}


def test_a_point_is_on_the_front_unless_another_is_as_fast_and_as_good():
    points = [{'time': t, 'map': m} for t, m in ((1.0, 40), (0.8, 41), (0.6, 30), (0.7, 29))]
    latency_front.mark_front(points)
    assert [p['on_front'] for p in points] == [False, True, True, False]


@pytest.mark.parametrize('text', ['int4=setup.cfg', 'bf16=missing.json', 'setup.cfg'])
def test_what_is_no_search_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match='TIER=FILE'):
        latency_front.tier_and_file(text)
