"""The page of all claims: nothing is claimed that no stage would decide."""

from __future__ import annotations

import shutil

import pytest
from evidence.experiment import REPOSITORY
from evidence.plans import TOPICS
from evidence.plans.overview import HEADLINES, headlines
from evidence.reader import Reader
from evidence.store import Store

PAGE = next(page for page in TOPICS if page.name == 'overview')


@pytest.fixture
def nothing_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Reader, 'result', lambda self, experiment: None)
    shutil.copy(REPOSITORY / 'docs/results/protocol.md', tmp_path)
    return Reader(Store(tmp_path))


def test_every_claim_stands_there_once_and_names_the_stage_that_decides_it(nothing_run):
    rows = PAGE.summarise(nothing_run)['claims']
    assert sorted(row['id'] for row in rows) == sorted(nothing_run.claims())
    assert [row['id'] for row in rows if row['stage'] is None] == []
    assert {row['outcome'] for row in rows} == {'not run'}


def test_page_tells_how_to_run_what_is_missing(nothing_run):
    page = PAGE.markdown(PAGE.summarise(nothing_run))
    assert f'{len(nothing_run.claims())} not run' in page
    assert 'T11, T12 by `ptq` (0.7 h)' in page


def test_headlines_name_claims_of_the_protocol(nothing_run):
    text = headlines(PAGE.summarise(nothing_run))
    assert '|' not in text, 'a table of what was not run would be empty'
    assert 'by `qat-five-seeds` (3.5 h)' not in text
    assert 'Q8, Q9, Q22 by `qat-seeds` (3.5 h)' in text
    named = {name for line in HEADLINES for name in (line.val, line.unseen) if name}
    assert named <= set(nothing_run.claims())


def test_unseen_images_decide_a_headline_and_val_stands_beside(nothing_run):
    summary = PAGE.summarise(nothing_run)
    found = {'estimate': 1.0, 'low': 0.5, 'high': 1.5, 'standard_error': 0.2, 'images': 9, 'seeds': 1}
    own = {row['id']: row for row in summary['claims']}
    own['Q5'].update(found=found, outcome='holds')
    line = next(line for line in headlines(summary).splitlines() if '(Q5, U7)' in line)
    assert '| 1.00 [0.50, 1.50] | - | - | - | 1 | images, this pair | 0.50 | **holds** for this pair on val |' in line
    sets = {name: {**found, 'outcome': 'not resolved'} for name in ('test', 'test_b', 'both')}
    own['U7'].update(found=found, sets=sets, outcome='not resolved')
    line = next(line for line in headlines(summary).splitlines() if '(Q5, U7)' in line)
    assert line.endswith('| **not resolved** for this pair |')
    assert line.count('1.00 [0.50, 1.50]') == 4


def test_a_sentence_that_cannot_be_tested_says_what_it_lacks(nothing_run):
    summary = PAGE.summarise(nothing_run)
    found = {'estimate': -1.0, 'low': -1.5, 'high': -0.5, 'standard_error': 0.2, 'images': 9, 'seeds': 1}
    for row in summary['claims']:
        if row['id'] == 'Q1':
            row.update(found=found, outcome='not testable: Q7 is contradicted')
    line = next(line for line in headlines(summary).splitlines() if '(Q1, U4)' in line)
    assert line.endswith('| **not testable: Q7 is contradicted** on val |')
