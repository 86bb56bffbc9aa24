"""search/: budget, caching, resuming and what the algorithms find, on a landscape that costs nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from landscape import Killed, Landscape, exact_front, run

from mixaq_mmdet.search.history import History
from mixaq_mmdet.search.space import Candidate
from mixaq_mmdet.search.study import checked_objectives, hypervolume, non_dominated
from mixaq_mmdet.search.surrogate import Ridge


@pytest.mark.parametrize('algorithm', ['nsga', 'surrogate'])
def test_budget_is_held_and_no_candidate_is_measured_twice(algorithm):
    landscape = Landscape()
    study = run(None, landscape, algorithm=algorithm, population=10, generations=3)
    assert all(scores['bops'] <= 0.8 for scores in study.asked.values())
    assert len(set(landscape.calls)) == len(landscape.calls) <= 30
    candidate, scores = study.best()
    assert scores['map'] == max(found['map'] for found in study.asked.values())
    assert study.front()[-1][0] == candidate


SEEDS = range(5)
REFERENCE = (-20.0, 1.0)


def shares_of_exact_front(algorithm: str, generations: int) -> list[float]:
    """Hypervolume found with 12 candidates a generation, of the one that no search can exceed; for each seed."""
    exact = hypervolume(exact_front(budget=0.8), REFERENCE)
    shares = []
    for seed in SEEDS:
        study = run(None, Landscape(), algorithm=algorithm, population=12, generations=generations, seed=seed)
        shares.append(hypervolume([study.values(scores) for scores in study.asked.values()], REFERENCE) / exact)
    return shares


def test_search_closes_most_of_the_gap_between_its_first_population_and_the_exact_front():
    first, few, many = (shares_of_exact_front('nsga', generations) for generations in (1, 4, 10))
    for start, middle, end in zip(first, few, many, strict=True):
        assert start <= middle <= end <= 1 + 1e-12, 'more candidates cannot take away, and none lies beyond the front'
    closed = [(end - start) / (1 - start) for start, end in zip(first, many, strict=True)]
    assert np.mean(closed) > 2 / 3
    assert min(closed) > 1 / 2


def test_surrogate_needs_a_third_of_the_evaluations():
    """The landscape is quadratic, as the surrogate's model is: with as many candidates as coefficients it knows all."""
    assert np.mean(shares_of_exact_front('surrogate', 2)) >= np.mean(shares_of_exact_front('nsga', 6))


@pytest.mark.parametrize(('algorithm', 'die_at'), [('nsga', 0), ('nsga', 3), ('nsga', 17), ('surrogate', 14)])
def test_killed_search_resumes_to_the_same_front(tmp_path, algorithm, die_at):
    size = {'population': 9, 'generations': 2 if algorithm == 'surrogate' else 4}
    whole = run(None, Landscape(), algorithm=algorithm, **size)
    path = tmp_path / 'history.jsonl'
    first = Landscape(die_at)
    with pytest.raises(Killed):
        run(path, first, algorithm=algorithm, **size)
    with open(path, 'a') as file:  # the line that was being written
        file.write('{"low": [1, 2, 3')
    second = Landscape()
    resumed = run(path, second, resume=True, algorithm=algorithm, **size)
    assert not set(first.calls) & set(second.calls)
    assert resumed.front() == whole.front()
    assert list(resumed.asked) == list(whole.asked)
    assert [json.loads(line) for line in path.read_text().splitlines()]


def test_history_of_something_else_is_refused(tmp_path):
    path = tmp_path / 'history.jsonl'
    History(path, {'model': 'a', 'images': ['1']}).add(Candidate((1,), (0,)), {'map': 1.0}, 0.5)
    with pytest.raises(ValueError, match='add --resume'):
        History(path, {'model': 'a', 'images': ['1']})
    with pytest.raises(ValueError, match='other images, model'):
        History(path, {'model': 'b', 'images': ['2']}, resume=True)
    again = History(path, {'model': 'a', 'images': ['1']}, resume=True)
    assert again.scores == {Candidate((1,), (0,)): {'map': 1.0}}


def test_front_and_hypervolume_of_known_points():
    points = [(1.0, 3.0), (2.0, 1.0), (2.0, 2.0), (3.0, 3.0), (1.0, 3.0)]
    assert sorted(non_dominated(points)) == [0, 1]
    assert hypervolume(points, (4.0, 4.0)) == pytest.approx(2 * 3 + 1 * 1)


def test_ridge_learns_a_quadratic():
    generator = np.random.default_rng(0)
    genes = generator.integers(0, 9, (60, 6))
    values = (genes**2 @ np.arange(6)) / 64.0
    model = Ridge(genes[:40], values[:40])
    assert np.abs(model(genes[40:]) - values[40:]).max() < 0.05 * values.std()


@pytest.mark.parametrize('text', ['map', 'bops,map', 'map,proxy', 'map,bops,latency'])
def test_unknown_objectives_are_refused(text):
    with pytest.raises(ValueError, match='--objectives'):
        checked_objectives(text)
