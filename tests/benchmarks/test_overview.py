"""The page of all claims: nothing is claimed that no stage would decide."""

from __future__ import annotations

import shutil

import pytest
from evidence.experiment import REPOSITORY
from evidence.plans.overview import markdown, summarise
from evidence.render import Reader
from evidence.store import Store


@pytest.fixture
def nothing_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Reader, 'result', lambda self, experiment: None)
    shutil.copy(REPOSITORY / 'docs/results/protocol.md', tmp_path)
    return Reader(Store(tmp_path))


def test_every_claim_stands_there_once_and_names_the_stage_that_decides_it(nothing_run):
    rows = summarise(nothing_run)['claims']
    assert sorted(row['id'] for row in rows) == sorted(nothing_run.claims())
    assert [row['id'] for row in rows if row['stage'] is None] == []
    assert {row['outcome'] for row in rows} == {'not run'}


def test_page_tells_how_to_run_what_is_missing(nothing_run):
    page = markdown(summarise(nothing_run))
    assert f'{len(nothing_run.claims())} not run' in page
    assert 'not run (`ptq`, 0.7 h)' in page
