"""analysis/latency.py: the table is complete, survives JSON, and adds up what it was told."""

from __future__ import annotations

import json

import pytest
from tiny_backbone import backbone

from mixaq_mmdet.analysis import latency, timing
from mixaq_mmdet.analysis.latency import Entry, LatencyTable, measure


def test_predictions_add_up_the_pieces():
    def blocks(stage: int, high: float, low: float) -> list[Entry]:
        counts = [(10, 0, 0), (5, 5, 0), (0, 10, 0), (5, 0, 5), (2, 3, 5)]
        times = [1.0 + high * h + low * lo for h, lo, _ in counts]
        return [Entry(stage, p, c, t, 0.0) for p in ('regular', 'shifted') for c, t in zip(counts, times, strict=True)]

    entries = [
        Entry(-1, 'rest', (0, 0, 0), 7.0, 0.0),
        Entry(0, 'rank', (0, 0, 0), 0.5, 0.0),
        *blocks(0, 0.2, 0.1),
        *blocks(1, 0.4, 0.3),
    ]
    table = LatencyTable((64, 64), (2, 1), (10, 10), entries)
    assert table.predict([0, 0], [0, 0]) == pytest.approx(7 + 2 * (1 + 2) + (1 + 4))
    assert table.predict([0.3, 0], [0.5, 0]) == pytest.approx(7 + 0.5 + 2 * (1 + 0.4 + 0.3) + 5)
    again = LatencyTable.from_dict(json.loads(json.dumps(table.as_dict())))
    assert again.predict([0.3, 0], [0.5, 0]) == table.predict([0.3, 0], [0.5, 0])
    with pytest.raises(ValueError, match='2 entries'):
        table.predict([0], [0])


def test_every_piece_of_a_backbone_is_timed(monkeypatch):
    monkeypatch.setattr(latency, 'GRID', ((0.0, 0.0), (0.5, 0.2)))
    model = backbone()
    table = measure(model, (64, 64), rounds=1, clock='cpu')
    pieces = [(entry.stage, entry.piece) for entry in table.entries]
    assert pieces.count((0, 'regular')) == pieces.count((0, 'shifted')) == pieces.count((1, 'regular')) == 2
    assert (1, 'shifted') not in pieces
    assert pieces.count((-1, 'rest')) == 4  # embedding, merging, two output norms
    assert table.windows == (16, 4)
    assert table.predict([0.5, 0.5], [0, 0]) > 0


def test_whole_forwards_are_timed_beside_the_pieces():
    model = backbone()
    model.set_ratios(0.2, 0.1)
    table = measure(model, (64, 64), rounds=1, clock='cpu', vectors=[([0.5, 0.0], [0.0, 0.3])])
    (whole,) = table.wholes
    assert (whole.low, whole.prune) == ((0.5, 0.0), (0.0, 0.3))
    assert whole.ms > 0
    assert model.low_ratios == (0.2, 0.2)
    assert model.prune_ratios == (0.1, 0.1)
    again = LatencyTable.from_dict(json.loads(json.dumps(table.as_dict())))
    assert again.wholes == table.wholes


def test_choosing_windows_costs_time_of_its_own():
    def entry(counts: tuple[int, int, int]) -> Entry:
        high, low, pruned = counts
        chosen = 2.0 if low or pruned else 0.0
        return Entry(0, 'regular', counts, 1 + high + 0.5 * low + chosen, 0.0)

    counts = [(10, 0, 0), (6, 4, 0), (2, 8, 0), (6, 0, 4), (2, 4, 4), (2, 0, 8)]
    table = LatencyTable((64, 64), (1,), (10,), [entry(c) for c in counts])
    assert table.predict([0], [0]) == pytest.approx(11)
    assert table.predict([0], [0.5]) == pytest.approx(8)
    assert table.predict([0.3], [0.5]) == pytest.approx(1 + 2 + 1.5 + 2)


def test_every_round_times_every_work_once_in_an_order_of_its_own():
    called: list[int] = []
    works = [lambda number=number: called.append(number) for number in range(6)]
    seconds = timing.alternate(works, rounds=3)
    assert [len(own) for own in seconds] == [3] * 6
    rounds = [tuple(called[start : start + 6]) for start in range(0, len(called), 6)]
    assert all(sorted(order) == list(range(6)) for order in rounds)
    assert len(set(rounds)) == 4


def test_clocks_are_checked():
    with pytest.raises(ValueError, match='clock'):
        timing.alternate([lambda: None], 1, 'sundial')
    with pytest.raises(ValueError, match='--rounds'):
        measure(backbone(), (64, 64), rounds=0)
