"""The protocol's table as the only source of claims."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence.claims import NOT_RUN, read_claims, require
from evidence.comparisons import Reading
from evidence.intervals import HOLDS, Interval
from evidence.plans import STAGES
from evidence.reader import Reader
from evidence.store import Store

ROOT = Path(__file__).resolve().parents[2]
HEADER = '| id | claim | published | metric | margin | seeds | data |\n|---|---|---|---|---|---|---|\n'


def protocol(folder: Path, rows: str) -> Path:
    path = folder / 'protocol.md'
    path.write_text(f'# Protocol\n\n| other | table |\n|---|---|\n| 1 | 2 |\n\n{HEADER}{rows}\nEnd.\n')
    return path


def test_rows_become_claims_that_judge(tmp_path: Path) -> None:
    found = read_claims(protocol(tmp_path, '| P1 | lossless | yes | difference | > -0.3 | 5 | val |\n'))
    judged = found['P1'].judge(Interval(0.1, -0.1, 0.3, 0.1, 500, 1))
    assert (judged['outcome'], judged['margin'], judged['found']['low']) == (HOLDS, '> -0.3', -0.1)
    assert found['P1'].judge(None)['outcome'] == NOT_RUN
    assert found['P1'].judge(None, untestable='no loss')['outcome'] == 'not testable: no loss'
    assert list(found) == ['P1']


NEEDS = f'{HEADER.splitlines()[0]} needs |\n{HEADER.splitlines()[1]}---|\n'


def reader(folder: Path, rows: str, found: dict[str, tuple[float, float]]) -> Reader:
    """Of a protocol with preconditions; ``found``: ends of the intervals of claims that were run."""
    (folder / 'protocol.md').write_text(f'{NEEDS}{rows}')
    intervals = {name: Interval(sum(ends) / 2, *ends, 0.1, 9, 1) for name, ends in found.items()}
    comparisons = {name: Reading(lambda _, interval=interval: interval) for name, interval in intervals.items()}
    return Reader(Store(folder), comparisons=comparisons)


GATED = '| P1 | lost | - | d | < 0 | 1 | val | - |\n| P2 | recovered | yes | d | > 0 | 1 | val | P1 |\n'


@pytest.mark.parametrize(
    ('found', 'outcome'),
    [
        ({'P1': (-2, -1), 'P2': (1, 2)}, 'holds'),
        ({'P1': (1, 2), 'P2': (1, 2)}, 'not testable: P1 is contradicted'),
        ({'P1': (-1, 2), 'P2': (-2, -1)}, 'not testable: P1 is not resolved'),
        ({'P2': (1, 2)}, 'not testable: P1 was not run'),
        ({'P1': (1, 2)}, 'not testable: P1 is contradicted'),
        ({'P1': (-2, -1)}, 'not run'),
        ({}, 'not run'),
    ],
)
def test_a_claim_is_tested_only_where_its_precondition_holds(
    tmp_path: Path, found: dict[str, tuple[float, float]], outcome: str
) -> None:
    judged = reader(tmp_path, GATED, found).judge('P2')
    assert judged['outcome'] == outcome
    assert (judged['found'] is not None) == ('P2' in found), 'what was found is shown all the same'


@pytest.mark.parametrize(
    ('needs', 'message'), [(('P2', 'P1'), 'needs itself'), (('-', 'P9'), "'P9', which is no claim")]
)
def test_preconditions_are_claims_without_circles(tmp_path: Path, needs: tuple[str, str], message: str) -> None:
    rows = ''.join(f'| P{n} | a | b | c | > 0 | 1 | val | {need} |\n' for n, need in enumerate(needs, 1))
    with pytest.raises(ValueError, match=message):
        reader(tmp_path, rows, {}).claims()


def test_recovered_degradation_needs_a_degradation() -> None:
    found = read_claims(ROOT / 'docs' / 'results' / 'protocol.md')
    for name in ('Q1', 'Q4', 'Q8', 'Q9', 'Q20', 'Q21', 'Q22', 'U4', 'U6'):
        assert found[name].needs == ('Q7',)


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ('| P1 | a | b | c | small | 1 | val |\n', 'margin='),
        ('| P1 | a | b | c |\n', '4 cells'),
        ('| P1 | a | b | c | > 0 | 1 | val |\n' * 2, 'twice'),
    ],
)
def test_unreadable_rows_are_errors(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_claims(protocol(tmp_path, rows))


def test_stage_without_its_claims_does_not_run(tmp_path: Path) -> None:
    found = read_claims(protocol(tmp_path, '| P1 | a | b | c | > 0 | 1 | val |\n'))
    require(found, ('P1',), 'stage')
    with pytest.raises(ValueError, match=r"\['P2'\] of stage 'stage'"):
        require(found, ('P1', 'P2'), 'stage')


def test_every_claim_of_the_stages_is_in_the_protocol() -> None:
    found = read_claims(ROOT / 'docs' / 'results' / 'protocol.md')
    for stage in STAGES:
        require(found, tuple(stage.claims), stage.name)
