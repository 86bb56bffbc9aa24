"""Result files: atomic, written once, damage told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evidence import store as store_module
from evidence.store import Store, write_json


def test_a_result_is_written_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.write('a', {'value': 1})
    assert not store.write('a', {'value': 2})
    assert store.read('a') == {'value': 1}


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'page.json'
    write_json(path, {'value': 1})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module.os, 'replace', die)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {'value': 2})
    assert json.loads(path.read_text()) == {'value': 1}


def test_half_a_result_does_not_count(tmp_path: Path) -> None:
    """Matches are written first: a kill in between leaves an experiment that is run again."""
    store = Store(tmp_path)
    store.runs.mkdir()
    store.path('a').with_suffix('.npz').write_bytes(b'')
    assert not store.has('a')


def test_damage_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write('a', {'value': 1})
    store.path('a').write_text('{"value":')
    with pytest.raises(ValueError, match='damaged'):
        store.read('a')
    with pytest.raises(ValueError, match='restore it from git'):
        store.matches('a')


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='JSON'):
        Store(tmp_path).write('a', {'value': float('nan')})
    assert not Store(tmp_path).has('a')
