"""Pages of arms and claims: what was run is a table, what was not one line; pairs of trainings are called that."""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence.comparisons import IMAGES, PAIR, SEEDS, Difference, OnBothStyles, training_of
from evidence.experiment import Experiment, fingerprint
from evidence.page import BOX, MASK, Models, Page, not_run
from evidence.plans import TOPICS, ptq, qat, unseen
from evidence.reader import Reader
from evidence.store import Store
from test_intervals import synthetic

HEADER = '| id | claim | published | metric | margin | seeds | data |\n|---|---|---|---|---|---|---|\n'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / 'c.py').write_text('model = dict(type="A")\n')
    (tmp_path / 'w.pth').write_bytes(b'weights')
    return tmp_path


def test_what_was_run_is_a_table_and_the_rest_one_line(repository: Path) -> None:
    store = Store(repository / 'results')
    arms = [Experiment(f'arm {n}', 'evaluate', config='c.py', starts_from='w.pth', seed=n) for n in range(4)]
    for arm, quality in zip(arms[:2], (0.9, 0.6), strict=True):
        matches = synthetic(60, quality)
        result = {'name': arm.name, 'metrics': {'coco/segm_mAP': 0.5}, 'extras': {}}
        store.write(fingerprint(arm, repository), result, {'bbox': matches, 'segm': matches})
    rows = '| A1 | better | - | d | > 0 | 1 | val |\n| A2 | too | - | d | > 0 | 1 | val |\n'
    (store.root / 'protocol.md').write_text(f'{HEADER}{rows}')
    claims = {'A1': Difference([arms[0]], [arms[1]]), 'A2': Difference([arms[2]], [arms[1]])}
    page = Page('page', 'Page', 'Text.', claims, [Models(arms, (BOX, MASK))])
    text = page.markdown(page.summarise(Reader(store, repository)))
    assert text.startswith('# Page\n\nText.\n\n| id |')
    assert '| A1 | better | d | > 0 |' in text
    assert '**holds**' in text
    assert 'Not run: A2.' in text
    assert '| arm 1 |' in text
    assert text.endswith('Not run: arm 2; arm 3.')
    assert 'not run |' not in text


def test_one_pair_of_trainings_is_told_from_one_model_in_two_forms() -> None:
    assert Difference([qat.SAQA], [qat.CONTROL]).over == PAIR
    assert Difference([qat.ADAPTED[0.4]], [qat.PRUNED[0.4]]).over == PAIR
    assert Difference(qat.SAQAS, qat.CONTROLS).over == SEEDS
    assert Difference([ptq.MIXED], [ptq.W4A8]).over == IMAGES, 'two calibrations of one float model'
    assert OnBothStyles(unseen.LOW, unseen.LOW_REVERSED).over == IMAGES, 'one training under two rankings'
    assert training_of(qat.ADAPTED[0.4]) == qat.SAQA
    assert training_of(ptq.MIXED) == ptq.FIRST


def test_a_pair_of_trainings_is_said_beside_its_outcome(tmp_path: Path) -> None:
    found = {'estimate': 1.0, 'low': 0.5, 'high': 1.5, 'standard_error': 0.2, 'images': 9, 'seeds': 1}
    entry = {'id': 'Q', 'claim': 'c', 'metric': 'm', 'margin': '> 0', 'found': found, 'outcome': 'holds'}
    page = Page('p', 'P', claims={'Q': Difference([qat.SAQA], [qat.QAT])})
    assert '| images, this pair | **holds** for this pair |' in page.markdown({'claims': [{**entry, 'over': PAIR}]})
    assert '| images | **holds** |' in page.markdown({'claims': [{**entry, 'over': IMAGES}]})


def test_every_claim_is_decided_on_one_page() -> None:
    names = [name for page in TOPICS for name in page.claims]
    assert len(names) == len(set(names))


def test_repeats_of_an_arm_are_named_together() -> None:
    assert not_run(['a', 'b, seed 1', 'b, seed 2', 'c, severity 5']) == 'Not run: a; b, seed 1, 2; c, severity 5.'
    assert not_run([]) == ''
