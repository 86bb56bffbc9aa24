"""tools/setup_env.py: what makes a set-up stale, and errors that hold their fix."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from tool_process import load_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_env():
    return load_tool('setup_env.py')


def test_every_package_the_set_up_installs_is_pinned(setup_env):
    extras = configparser.ConfigParser()
    extras.read(ROOT / 'setup.cfg')
    lines = '\n'.join(extras['options.extras_require'].values()).split()
    extra_names = {re.split(r'[<>=\[]', line)[0] for line in lines if line and not line.startswith(('mixaq', '<'))}
    stacks = {name for stack in setup_env.STACKS.values() for name in stack[:3]}
    for name in {*extra_names, *setup_env.BUILD_TOOLS, *setup_env.HOST, *stacks} - {'77.0.3', '82', ''}:
        assert setup_env.pinned(name)
    with pytest.raises(setup_env.SetupError, match='does not pin left-pad'):
        setup_env.pinned('left-pad')


def test_installing_the_package_demands_nothing_of_the_host():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert config['options']['install_requires'].strip() == ''


def test_a_set_up_is_complete_until_its_inputs_change(setup_env, tmp_path):
    environment = setup_env.Environment(tmp_path, system_packages=False)
    assert not setup_env.is_complete(environment, 'mark')
    environment.python.parent.mkdir()
    environment.python.touch()
    (tmp_path / setup_env.STAMP).write_text('{"fingerprint": "mark"}')
    assert setup_env.is_complete(environment, 'mark')
    assert not setup_env.is_complete(environment, 'another mark')
    openmmlab, onedl = setup_env.STACKS.values()
    marks = {setup_env.fingerprint(*case) for case in ((False, openmmlab), (True, openmmlab), (False, onedl))}
    assert len(marks) == 3


def test_two_stacks_never_share_an_environment(setup_env, monkeypatch, tmp_path):
    environment = setup_env.Environment(tmp_path, system_packages=True, stack=setup_env.STACKS['onedl'])
    monkeypatch.setattr(environment, 'version', {'mmengine': '0.10.7'}.get)
    with pytest.raises(setup_env.SetupError, match='give STACK=openmmlab, or --folder'):
        setup_env.refuse_other_stacks(environment)
    monkeypatch.setattr(environment, 'version', {'onedl-mmengine': '0.10.12'}.get)
    setup_env.refuse_other_stacks(environment)


def test_an_unknown_stack_is_refused_with_the_names(setup_env, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sys, 'argv', ['setup_env.py', '--stack', 'oneddl', '--folder', str(tmp_path / 'env')])
    with pytest.raises(setup_env.SetupError, match='openmmlab, onedl'):
        setup_env.main()


def test_an_unsupported_python_is_refused_before_anything_is_made(setup_env, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sys, 'argv', ['setup_env.py', '--folder', str(tmp_path / 'env')])
    monkeypatch.setattr(setup_env, 'PYTHON_RANGE', ((2, 6), (2, 8)))
    with pytest.raises(setup_env.SetupError, match='make setup PYTHON='):
        setup_env.main()
    assert not (tmp_path / 'env').exists()
