"""Where trainings lie, what they were trained on, and which code a result names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from evidence.source import source
from evidence.workplace import STORE_VARIABLE, Workplace, default_root

NOW, LATER = {'commit': 'a', 'dirty': False}, {'commit': 'b', 'dirty': True}


def test_trainings_lie_below_the_cache_unless_the_environment_names_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_root() == tmp_path / 'mixaq_mmdet' / 'evidence'
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / 'own'))
    assert default_root() == tmp_path / 'own'


def test_every_attempt_names_its_code(tmp_path: Path) -> None:
    assert Workplace(tmp_path, 'k').begin_attempt(NOW, {'train': 'digest'}) == [NOW]
    assert Workplace(tmp_path, 'k').begin_attempt(LATER, {'train': 'digest'}) == [NOW, LATER]


def test_a_training_on_other_data_is_not_taken_up(tmp_path: Path) -> None:
    Workplace(tmp_path, 'k').begin_attempt(NOW, {'train': 'digest'})
    with pytest.raises(ValueError, match=rf"split 'train'.*{STORE_VARIABLE}"):
        Workplace(tmp_path, 'k').begin_attempt(NOW, {'train': 'another'})


def test_source_names_the_commit_and_tells_code_that_it_does_not_hold(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        own = ['-c', 'user.name=n', '-c', 'user.email=e@example.com']
        return subprocess.run(
            ['git', *own, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'model.py').write_text('width = 8\n')
    git('init', '--quiet')
    git('add', '.')
    git('commit', '--quiet', '--message', 'first')
    clean = {'commit': git('rev-parse', 'HEAD'), 'dirty': False}
    assert source(tmp_path) == clean
    (tmp_path / 'notes.md').write_text('no code\n')
    assert source(tmp_path) == clean
    (tmp_path / 'configs' / 'other.py').write_text('width = 9\n')
    assert source(tmp_path) == {**clean, 'dirty': True}


def test_source_without_git_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert source(tmp_path) == {'commit': None, 'dirty': None}
