"""Pages are made from result files alone, the same way every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evidence.experiment import Experiment, fingerprint
from evidence.page import Facts, Page
from evidence.plans import preconditions
from evidence.plans.float_models import FIRST, SEALED
from evidence.reader import Reader
from evidence.render import render
from evidence.store import Store
from test_intervals import synthetic

from mixaq_mmdet.reporting.markdown import markdown_table

ROOT = Path(__file__).resolve().parents[2]
ONE = Experiment('one', 'measure', measure='m:f', settings={'n': 1}, split=None)
TWO = replace(ONE, name='two', settings={'n': 2})


def test_page_is_written_from_results_and_stable(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(fingerprint(ONE), {'name': 'one', 'extras': {'n': 1.5}})

    def plot(summary: dict, figure: object) -> None:
        figure.subplots().plot([summary['numbers'][0], 2])

    numbers = Facts(
        'numbers',
        lambda reader: [reader.result(ONE)['extras']['n'], reader.result(TWO)],
        lambda found: markdown_table(['one', 'two'], [found]),
    )
    page = Page('topic', 'Topic', parts=[numbers], plot=plot)
    render(page, Reader(store))
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert set(first) == {'topic.json', 'topic.md', 'topic.png'}
    assert '| 1.50 | - |' in first['topic.md'].decode()
    assert '![topic](topic.png)' in first['topic.md'].decode()
    render(page, Reader(store))
    assert first == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_excerpt_replaces_its_own_place_only(tmp_path: Path) -> None:
    store, page = Store(tmp_path / 'results'), tmp_path / 'results.md'
    one = Facts('n', lambda reader: 1, lambda found: '')
    topic = Page('topic', 'Topic', parts=[one], excerpt=lambda summary: f'n is {summary["n"]}')
    page.write_text(
        '# Results\n\n<!-- topic: made by `experiments.py render topic` -->\nold\n<!-- end of topic -->\nend\n'
    )
    render(topic, Reader(store))
    first = page.read_text()
    assert 'n is 1' in first
    assert 'old' not in first
    assert first.startswith('# Results\n\n<!--')
    assert first.endswith('<!-- end of topic -->\nend\n')
    render(topic, Reader(store))
    assert page.read_text() == first
    page.write_text('# Results\n')
    with pytest.raises(ValueError, match='no place for topic'):
        render(topic, Reader(store))


def test_results_on_different_data_do_not_meet_on_a_page(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write(fingerprint(ONE), {'name': 'one', 'data': {'val': 'aaaa'}})
    store.write(fingerprint(TWO), {'name': 'two', 'data': {'val': 'bbbb'}})
    reader = Reader(store)
    reader.result(ONE)
    with pytest.raises(ValueError, match="'one' and 'two'"):
        reader.result(TWO)


def test_rows_are_told_that_rest_on_a_training_run_again(tmp_path: Path) -> None:
    store = Store(tmp_path / 'results')
    (tmp_path / 'c.py').write_text('model = dict(type="A")\n')
    first = Experiment('first', 'train', config='c.py')
    adapted = replace(first, name='adapted', starts_from=first, seed=1)
    evaluated = Experiment('same', 'evaluate', config='c.py', starts_from=first)
    beyond = replace(evaluated, name='beyond', starts_from=adapted)
    again = replace(evaluated, name='again', seed=1)
    for experiment, start, own in (
        (first, None, 'x'),
        (adapted, 'y', 'z'),
        (beyond, 'z', 'z'),
        (evaluated, None, 'x'),  # as written before the start's digest was kept
        (again, None, 'y'),
    ):
        result = {'name': experiment.name, 'start_sha256': start, 'checkpoint_sha256': own}
        store.write(fingerprint(experiment, tmp_path), result)
    missing = replace(beyond, name='missing', seed=2)
    told = [
        e.name for e in (first, adapted, beyond, evaluated, again, missing) if Reader(store, tmp_path).starts_anew(e)
    ]
    assert told == ['adapted', 'beyond', 'again']


@pytest.fixture
def preconditions_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Path]:
    """A repository with the real configs and protocol and a stand-in for the shipped weights."""
    repository = tmp_path / 'repository'
    (repository / 'checkpoints').mkdir(parents=True)
    (repository / FIRST).write_bytes(b'weights')
    (repository / 'configs').symlink_to(ROOT / 'configs')
    store = Store(tmp_path / 'results')
    store.root.mkdir()
    (store.root / 'protocol.md').write_text((ROOT / 'docs' / 'results' / 'protocol.md').read_text())
    return store, repository


def test_preconditions_page_before_anything_was_run(preconditions_store: tuple[Store, Path]) -> None:
    store, repository = preconditions_store
    summary = render(preconditions.TOPICS[0], Reader(store, repository))
    assert {claim['outcome'] for claim in summary['claims']} == {'not run'}
    page = (store.root / 'preconditions.md').read_text()
    assert 'Not run: P1-1; P1-2;' in page
    assert 'Not run: first, val; first, search;' in page


def test_preconditions_page_judges_what_was_run(preconditions_store: tuple[Store, Path]) -> None:
    store, repository = preconditions_store
    arms = {'val': 0.8, 'test': 0.8, 'test_b': 0.7}
    for experiment in (preconditions.CLEAN[0], *SEALED):
        arm = synthetic(60, arms[experiment.split])
        result = {'name': experiment.name, 'images': 60, 'metrics': {}}
        store.write(fingerprint(experiment, repository), result, {'bbox': arm, 'segm': arm})
    interval = {'estimate': 1.5, 'low': 1.4, 'high': 1.6, 'standard_error': 0.05, 'images': 60, 'seeds': 1}
    share = dict.fromkeys(('L2', 'Std', 'random', 'best', 'against_chance'), interval)
    extras = {
        'object_share': [share] * 4,
        'channel_range_ratio': [{'stage': s, 'layer': 'x', 'ratio': 1.0 + s} for s in (1, 2, 3, 4) for _ in range(2)],
    }
    result = {'name': 'w', 'images': 60, 'metrics': {}, 'extras': extras}
    store.write(fingerprint(preconditions.WINDOWS, repository), result)
    summary = render(preconditions.TOPICS[0], Reader(store, repository))
    found = {claim['id']: claim['outcome'] for claim in summary['claims']}
    assert found['P1-1'] == found['P3'] == found['P4'] == 'holds'
    assert found['P2'] == 'not run'
    assert found['P7'] == 'contradicted'
    assert (store.root / 'preconditions.png').stat().st_size > 10_000
    assert json.loads((store.root / 'preconditions.json').read_text()) == summary
    val = next(entry for entry in summary['accuracy'] if entry['split'] == 'val')
    assert val['bbox']['low'] < val['bbox']['estimate'] < val['bbox']['high']
    assert np.isfinite(val['bbox']['standard_error'])
