"""The protocol's table as the only source of claims."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence.claims import NOT_RUN, read_claims, require
from evidence.plans import STAGES
from evidence.statistics import HOLDS, Interval

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
