"""tools/mmcv_wheel.py: what may share a built wheel, what a build leaves behind, and errors that hold their fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tool_process import load_tool


@pytest.fixture
def mmcv_wheel():
    return load_tool('mmcv_wheel.py')


class FakeEnvironment:
    """Answers what the real one would ask a python of."""

    folder = Path('nowhere')
    python = Path('nowhere/bin/python')

    def __init__(self, torch: str | None) -> None:
        self.torch = torch

    def evaluate(self, code: str) -> str | None:
        return self.torch if '__version__' in code else '0'


def test_wheels_are_shared_only_by_equal_builds(mmcv_wheel, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(mmcv_wheel, 'compiler_version', lambda: 'g++ 12')
    cpu = mmcv_wheel.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '0'})
    assert cpu.is_relative_to(tmp_path)
    assert cpu == mmcv_wheel.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '0'})
    others = [
        mmcv_wheel.wheel_folder(FakeEnvironment('2.13.0+cu130'), {'FORCE_CUDA': '0'}),
        mmcv_wheel.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '1'}),
    ]
    monkeypatch.setattr(mmcv_wheel, 'compiler_version', lambda: 'g++ 13')
    others.append(mmcv_wheel.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '0'}))
    assert len({cpu, *others}) == 4


def test_without_torch_or_compiler_the_error_says_what_to_run(mmcv_wheel, monkeypatch):
    monkeypatch.setattr(mmcv_wheel, 'compiler_version', lambda: 'g++ 12')
    with pytest.raises(mmcv_wheel.SetupError, match='torch does not import'):
        mmcv_wheel.wheel_folder(FakeEnvironment(None), {})
    monkeypatch.undo()
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(mmcv_wheel.shutil, 'which', lambda name: None)
    with pytest.raises(mmcv_wheel.SetupError, match='install one'):
        mmcv_wheel.compiler_version()


def test_the_build_log_is_read_as_progress(mmcv_wheel, tmp_path, monkeypatch):
    log = tmp_path / 'build.log'
    log.write_text('')
    writer = 'import time\nfor i in (1, 2):\n  time.sleep(.2)\n  print(f"[{i}/2] c++", flush=True)\ntime.sleep(.3)'
    real_sleep = mmcv_wheel.time.sleep
    monkeypatch.setattr(mmcv_wheel.time, 'sleep', lambda seconds: real_sleep(0.05))
    with log.open('w') as stream:
        process = subprocess.Popen([sys.executable, '-c', writer], stdout=stream)
        assert list(mmcv_wheel.build_steps(log, process)) == [(1, 2), (2, 2)]


SETUP_PY = """def get_version():
    version_file = 'mmcv/version.py'
    with open(version_file, encoding='utf-8') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']
"""


def fake_download(mmcv_wheel, monkeypatch, setup_py: str | None) -> None:
    """pip downloads, leaves the unpacked source behind or not, and fails, as it does on Python 3.13."""

    def run(command, env, **_):
        if setup_py is not None:
            folder = Path(env['TMPDIR'], 'pip-download-1', 'mmcv_0')
            folder.mkdir(parents=True)
            (folder / 'setup.py').write_text(setup_py)
        return subprocess.CompletedProcess(command, 1, '', 'no such host')

    monkeypatch.setattr(mmcv_wheel.subprocess, 'run', run)


def test_the_version_is_read_without_locals(mmcv_wheel, monkeypatch, tmp_path):
    fake_download(mmcv_wheel, monkeypatch, SETUP_PY)
    source = mmcv_wheel.fetch_source(FakeEnvironment('2.13.0'), 'mmcv', '2.1.0', tmp_path)
    names = {}
    exec((source / 'setup.py').read_text(), names)
    (source / 'mmcv').mkdir()
    (source / 'mmcv' / 'version.py').write_text("__version__ = '2.1.0'")
    monkeypatch.chdir(source)
    assert names['get_version']() == '2.1.0'
    assert 'locals' not in (source / 'setup.py').read_text()


def test_a_download_that_fails_shows_what_pip_said(mmcv_wheel, monkeypatch, tmp_path):
    fake_download(mmcv_wheel, monkeypatch, None)
    with pytest.raises(mmcv_wheel.SetupError, match='no such host'):
        mmcv_wheel.fetch_source(FakeEnvironment('2.13.0'), 'mmcv', '2.1.0', tmp_path)


def test_clang_and_cuda_builds_take_no_precompiled_header(mmcv_wheel, monkeypatch, tmp_path):
    clang = subprocess.CompletedProcess([], 0, 'clang version 14', '')
    monkeypatch.setattr(mmcv_wheel, 'compiler_command', lambda: ['clang++'])
    monkeypatch.setattr(mmcv_wheel.subprocess, 'run', lambda *_, **__: clang)
    flags = {'FORCE_CUDA': '0', 'CFLAGS': '-O3'}
    assert mmcv_wheel.precompiled_header(FakeEnvironment('2.13.0'), flags, tmp_path) == []
    gnu = subprocess.CompletedProcess([], 0, 'g++ 12\nCopyright Free Software Foundation', '')
    monkeypatch.setattr(mmcv_wheel.subprocess, 'run', lambda *_, **__: gnu)
    assert mmcv_wheel.precompiled_header(FakeEnvironment('2.13.0'), {**flags, 'FORCE_CUDA': '1'}, tmp_path) == []
    assert '-include' in mmcv_wheel.precompiled_header(FakeEnvironment('2.13.0'), flags, tmp_path)


def test_an_interrupted_build_leaves_nothing_behind(mmcv_wheel, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    started = []

    def interrupted(environment, source, flags, work):
        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)
        started.append(child)
        mmcv_wheel.stop(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(mmcv_wheel, 'fetch_source', lambda *_: tmp_path)
    monkeypatch.setattr(mmcv_wheel, 'precompiled_header', lambda *_: [])
    monkeypatch.setattr(mmcv_wheel, 'compile_wheel', interrupted)
    with pytest.raises(KeyboardInterrupt):
        mmcv_wheel.built_wheel(FakeEnvironment('2.13.0'), 'mmcv', '2.1.0')
    assert started[0].poll() is not None
    assert [path for path in tmp_path.rglob('*') if path.is_file()] == []
    assert not list(tmp_path.rglob('*.building-*'))
