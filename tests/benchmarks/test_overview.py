"""The page of all claims: nothing is claimed that no stage would decide."""

from __future__ import annotations

import shutil

import pytest
from evidence.experiment import REPOSITORY
from evidence.plans.overview import HEADLINES, headlines, markdown, summarise
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


def test_headlines_name_claims_of_the_protocol(nothing_run):
    text = headlines(summarise(nothing_run))
    assert len(text.splitlines()) == 2 + len(HEADLINES)
    assert 'Better than SparseViT at 1.21x (Q5, U7) | 43.2 against 43.1 at 1.24x' in text
    named = {name for line in HEADLINES for name in (line.val, line.unseen) if name}
    assert named <= set(nothing_run.claims())


def test_unseen_pictures_decide_a_headline_and_val_stands_beside(nothing_run):
    summary = summarise(nothing_run)
    found = {'estimate': 1.0, 'low': 0.5, 'high': 1.5, 'standard_error': 0.2, 'images': 9, 'seeds': 1}
    for row in summary['claims']:
        if row['id'] == 'Q5':
            row.update(found=found, outcome='holds')
    line = next(line for line in headlines(summary).splitlines() if '(Q5, U7)' in line)
    assert '| 1.00 [0.50, 1.50] | - | - | - | 1 | 0.50 | **holds** on val |' in line
    for row in summary['claims']:
        if row['id'] == 'U7':
            sets = {name: {**found, 'outcome': 'not resolved'} for name in ('test', 'test_b', 'both')}
            row.update(found=found, sets=sets, outcome='not resolved')
    line = next(line for line in headlines(summary).splitlines() if '(Q5, U7)' in line)
    assert line.endswith('| **not resolved** |')
    assert line.count('1.00 [0.50, 1.50]') == 4
