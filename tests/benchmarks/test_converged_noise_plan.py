"""Window noise of the converged pairs: signs, pairing, and what a missing measure does."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence.plans import converged, converged_noise
from evidence.reader import Reader
from evidence.store import Store

STAGES = 4


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    (tmp_path / 'protocol.md').write_text(Path('docs/results/protocol.md').read_text())
    return Reader(Store(tmp_path), comparisons=converged_noise.CLAIMS)


def write(reader: Reader, pair: int, important: float, other: float) -> None:
    """SAQA of a pair gains so many dB in each half of the last stage's windows, and loses 1 in the stages before."""
    important_half, other_half = converged_noise.HALF_NAMES
    level = {'all': 8.0, important_half: 9.0, other_half: 7.0}
    gains = {'all': (important + other) / 2, important_half: important, other_half: other}
    saqa, control = converged_noise.PAIRS[pair]
    last = {place: level[place] + gains[place] for place in level}
    first = {place: value - 1 for place, value in level.items()}
    for row, stages in ((control, [level] * STAGES), (saqa, [first] * (STAGES - 1) + [last])):
        reader.store.write(reader.key(row), {'name': row.name, 'extras': {'stages': stages}})


def test_each_pair_is_saqa_and_the_control_of_its_seed():
    for seed, (saqa, control) in zip(converged_noise.SEEDS, converged_noise.PAIRS, strict=True):
        assert (saqa.starts_from, control.starts_from) == (converged.SAQAS[seed], converged.CONTROLS[seed])
        assert (saqa.measure, saqa.split, saqa.settings) == (control.measure, control.split, control.settings)


def test_the_last_stage_decides_over_seeds(reader):
    for pair, spread in enumerate((-0.02, 0.0, 0.02)):
        write(reader, pair, important=0.3 + spread, other=0.5 + 3 * spread)
    gain, important = (reader.judge(name) for name in converged_noise.CLAIMS)
    assert gain['found']['estimate'] == pytest.approx(0.4)
    assert gain['outcome'] == 'holds'
    assert important['found']['estimate'] == pytest.approx(-0.2)
    assert important['outcome'] == 'contradicted'
    first, *_, last = converged_noise.by_stage(reader) or []
    assert (first['all']['estimate'], last['all']['estimate']) == (pytest.approx(-1), pytest.approx(0.4))


def test_without_one_measure_nothing_is_run(reader):
    for pair in range(2):
        write(reader, pair, important=0.3, other=0.5)
    assert {reader.judge(name)['outcome'] for name in converged_noise.CLAIMS} == {'not run'}
    text = converged_noise.NOISE.markdown(converged_noise.NOISE.summarise(reader))
    assert 'Not run: window SQNR by importance, W4A3 SAQA, seed 1, 2, 3; ' in text
