"""tools/setup_env.py: what may share a built wheel, what makes a set-up stale, and errors that hold their fix."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tool_process import load_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_env():
    return load_tool('setup_env.py')


class FakeEnvironment:
    """Answers what the real one would ask a python of."""

    folder = Path('nowhere')
    python = Path('nowhere/bin/python')

    def __init__(self, torch: str | None) -> None:
        self.torch = torch

    def evaluate(self, code: str) -> str | None:
        return self.torch if '__version__' in code else '0'


def test_every_package_the_set_up_installs_is_pinned(setup_env):
    extras = configparser.ConfigParser()
    extras.read(ROOT / 'setup.cfg')
    lines = '\n'.join(extras['options.extras_require'].values()).split()
    extra_names = {re.split(r'[<>=\[]', line)[0] for line in lines if line and not line.startswith(('mixaq', '<'))}
    for name in {*extra_names, *setup_env.BUILD_TOOLS, *setup_env.HOST, 'mmcv'} - {'77.0.3', '82', ''}:
        assert setup_env.pinned(name)
    with pytest.raises(setup_env.SetupError, match='does not pin left-pad'):
        setup_env.pinned('left-pad')


def test_installing_the_package_demands_nothing_of_the_host():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config['options']['install_requires'].strip() == ''


def test_wheels_are_shared_only_by_equal_builds(setup_env, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(setup_env, 'compiler', lambda: 'g++ 12')
    cpu = setup_env.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '0'})
    assert cpu.is_relative_to(tmp_path)
    assert cpu == setup_env.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '0'})
    others = [
        setup_env.wheel_folder(FakeEnvironment('2.13.0+cu130'), {'FORCE_CUDA': '0'}),
        setup_env.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '1'}),
    ]
    monkeypatch.setattr(setup_env, 'compiler', lambda: 'g++ 13')
    others.append(setup_env.wheel_folder(FakeEnvironment('2.13.0+cpu'), {'FORCE_CUDA': '0'}))
    assert len({cpu, *others}) == 4


def test_without_torch_or_compiler_the_error_says_what_to_run(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env, 'compiler', lambda: 'g++ 12')
    with pytest.raises(setup_env.SetupError, match='torch does not import'):
        setup_env.wheel_folder(FakeEnvironment(None), {})
    monkeypatch.undo()
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    with pytest.raises(setup_env.SetupError, match='install one'):
        setup_env.compiler()


def test_a_set_up_is_complete_until_its_inputs_change(setup_env, tmp_path):
    environment = setup_env.Environment(tmp_path, system_packages=False)
    assert not setup_env.is_complete(environment, 'mark')
    environment.python.parent.mkdir()
    environment.python.touch()
    (tmp_path / setup_env.STAMP).write_text('{"fingerprint": "mark"}')
    assert setup_env.is_complete(environment, 'mark')
    assert not setup_env.is_complete(environment, 'another mark')
    assert setup_env.fingerprint(False) != setup_env.fingerprint(True)


def test_the_build_log_is_read_as_progress(setup_env, tmp_path, monkeypatch):
    log = tmp_path / 'build.log'
    log.write_text('')
    writer = 'import time\nfor i in (1, 2):\n  time.sleep(.2)\n  print(f"[{i}/2] c++", flush=True)\ntime.sleep(.3)'
    real_sleep = setup_env.time.sleep
    monkeypatch.setattr(setup_env.time, 'sleep', lambda seconds: real_sleep(0.05))
    with log.open('w') as stream:
        process = subprocess.Popen([sys.executable, '-c', writer], stdout=stream)
        assert list(setup_env.build_steps(log, process)) == [(1, 2), (2, 2)]


def test_an_unsupported_python_is_refused_before_anything_is_made(setup_env, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sys, 'argv', ['setup_env.py', '--folder', str(tmp_path / 'env')])
    monkeypatch.setattr(setup_env, 'PYTHON_RANGE', ((2, 6), (2, 8)))
    with pytest.raises(setup_env.SetupError, match='make setup PYTHON='):
        setup_env.main()
    assert not (tmp_path / 'env').exists()
