"""Building the portable kernels: for this CPU where the compiler knows it, and never for another machine's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mixaq_mmdet.deploy.kernels import build, portable


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list[list[str]]:
    """What the compiler is asked; it refuses to build for this CPU."""
    asked: list[list[str]] = []

    def compile_or_refuse(command: list[str], sources: Path, path: Path) -> None:
        asked.append(command)
        if portable.FOR_THIS_CPU in command:
            raise subprocess.CalledProcessError(1, command, stderr='unknown CPU')
        path.touch()

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(build, '_compile', compile_or_refuse)
    return asked


def test_a_compiler_that_does_not_know_this_cpu_builds_for_any(commands):
    assert portable._build('true').is_file()
    assert [portable.FOR_THIS_CPU in command for command in commands] == [True, False]


def test_no_instruction_set_is_asked_for(commands):
    portable._build('true')
    named = {flag for command in commands for flag in command if flag.startswith('-m')}
    assert named == {portable.FOR_THIS_CPU}


def test_another_cpu_finds_another_file(commands, monkeypatch):
    monkeypatch.setattr(portable, 'cpu_features', lambda: frozenset({'avx2'}))
    first = portable._build('true')
    monkeypatch.setattr(portable, 'cpu_features', lambda: frozenset({'avx2', 'avx512f'}))
    assert portable._build('true') != first


def test_a_stopped_process_that_holds_the_lock_is_not_waited_for_for_ever(commands, monkeypatch):
    fcntl = pytest.importorskip('fcntl', reason='files have no locks here')
    monkeypatch.setattr(build, 'LONGEST_BUILD', 0.2)
    cache = build.cache_folder()
    cache.mkdir(parents=True)
    with open(cache / 'lock', 'w') as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert portable._build('true').is_file()
