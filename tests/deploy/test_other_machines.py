"""Machines without a compiler, without AVX-512, and that are no Linux: converted models run, and say on what."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from integer_twin import integer, simulated
from tiny_backbone import images
from tiny_detectors import batch, calibrated
from tool_process import REPOSITORY

from mixaq_mmdet.deploy import convert_model, parts
from mixaq_mmdet.deploy.backends import here
from mixaq_mmdet.deploy.backends.base import by_preference
from mixaq_mmdet.deploy.backends.kernels import KernelsBackend
from mixaq_mmdet.deploy.backends.onednn import OnednnBackend
from mixaq_mmdet.deploy.kernels import build
from mixaq_mmdet.deploy.layouts import BlockWeights, Layer

ONEDNN, NO_ONEDNN = OnednnBackend.load()
needs_onednn = pytest.mark.skipif(ONEDNN is None, reason=f'no oneDNN int8 operators here: {NO_ONEDNN}')
ONLY_UNIX = {'fcntl', 'grp', 'posix', 'pwd', 'resource', 'termios'}
NO_COMPILER = 'no C++ compiler found; install g++ or set CXX'


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(build.shutil, 'which', lambda name: None)
    monkeypatch.setattr(build, 'cpu_features', lambda: frozenset(build.AVX2.needed))


@pytest.fixture
def other_system(monkeypatch):
    """``build.py`` as Windows imports it: no locks of files, nothing below /proc."""
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    monkeypatch.setattr(Path, 'read_text', lambda self, *_, **__: (_ for _ in ()).throw(FileNotFoundError(str(self))))
    spec = spec_from_file_location(f'{build.__package__}.build_elsewhere', build.__file__)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_package_imports_nothing_that_only_unix_has():
    """At module level; what is imported at the moment of need has a way around."""
    for path in (REPOSITORY / 'mixaq_mmdet').rglob('*.py'):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            assert not ONLY_UNIX.intersection(name.split('.')[0] for name in names), path


def test_another_system_has_no_kernels_and_says_why(other_system):
    assert other_system.load() == (
        None,
        "what this CPU has is not known without Linux's /proc; the kernels need " + ', '.join(build.AVX2.needed),
    )


def test_libraries_are_built_where_files_have_no_locks(other_system, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(other_system, '_compile', lambda command, sources, path: path.touch())
    assert other_system.built('true', [], tmp_path).is_file()


def test_no_compiler(no_compiler):
    assert build.load.__wrapped__() == (None, NO_COMPILER)


@pytest.fixture
def nothing_built(monkeypatch):
    """Neither library, and int8 products that saturate: what is left is torch."""
    monkeypatch.setattr(KernelsBackend, 'load', classmethod(lambda cls: (None, NO_COMPILER)))
    monkeypatch.setattr(OnednnBackend, 'load', classmethod(lambda cls: (None, 'int8 products saturate')))
    for name in ('nms', 'roi_extractor', 'masks', 'heads'):
        module = getattr(parts, name, None)
        if hasattr(module, 'load_portable'):
            monkeypatch.setattr(module, 'load_portable', lambda: (None, NO_COMPILER))
    monkeypatch.setattr(here, 'load_portable', lambda: (None, NO_COMPILER))


@needs_onednn
def test_without_a_compiler_backbones_run_on_torchs_int8_operators(monkeypatch):
    monkeypatch.setattr(KernelsBackend, 'load', classmethod(lambda cls: (None, NO_COMPILER)))
    model = simulated('RepQ', low_ratios=0.4, prune_ratios=0.2)
    twin = integer(model, 'auto')
    assert twin.plan.engine == 'onednn'
    assert f'run as int8 (oneDNN, because {NO_COMPILER}); pruned windows are skipped' in twin.plan.line
    assert here.engines_here()[:2] == [
        f'Swin blocks: int8 (oneDNN, because {NO_COMPILER})',
        f'Swin blocks would gain: {KernelsBackend.gain}',
    ]


@needs_onednn
def test_products_that_saturate_are_not_taken():
    """oneDNN without VNNI, in a process of its own: it reads the variable once."""
    code = f"""
from integer_twin import integer, simulated
from mixaq_mmdet.deploy.backends import KernelsBackend
KernelsBackend.load = classmethod(lambda cls: (None, {NO_COMPILER!r}))
print(integer(simulated('MinMax'), 'auto').plan.line)
"""
    folders = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / 'tests'), str(REPOSITORY / 'tests' / 'deploy')])
    environment = {**os.environ, 'ONEDNN_MAX_CPU_ISA': 'AVX2', 'PYTHONPATH': folders}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    reason = f'{NO_COMPILER}; int8 products of oneDNN saturate on this CPU, which has no VNNI'
    assert f'run as exact integers in plain torch, because {reason}' in done.stdout


def test_backbones_run_in_torch_and_say_why(nothing_built):
    model = simulated('RepQ')
    twin = integer(model, 'auto')
    assert f'exact integers in plain torch, because {NO_COMPILER}' in twin.plan.line
    x = images(1)[0]
    assert all(torch.equal(a, b) for a, b in zip(twin(x), integer(model, 'torch')(x), strict=True))


def test_whole_detectors_run_in_torch(nothing_built):
    with torch.no_grad():
        found = convert_model(calibrated('Mask R-CNN', 'RepQ W4A8')).test_step(batch())[0].pred_instances
    assert len(found)
    assert torch.isfinite(found.bboxes).all()


def test_the_doctor_says_what_is_missed(nothing_built):
    lines = here.engines_here()
    assert lines == [
        f'Swin blocks: exact integers in plain torch, because {NO_COMPILER}; int8 products saturate',
        f'Swin blocks would gain: {KernelsBackend.gain}',
        f'neck and heads: exact integers in plain torch, because int8 products saturate; {NO_COMPILER}',
        f'neck and heads would gain: {OnednnBackend.gain}',
        f'RoIAlign, NMS and masks: torch and mmcv, because {NO_COMPILER}',
    ]


def test_where_the_best_engine_runs_nothing_is_missed(monkeypatch):
    for kind in {*by_preference(BlockWeights), *by_preference(Layer)}:
        monkeypatch.setattr(kind, 'load', classmethod(lambda cls: (cls.__new__(cls), '')))
        monkeypatch.setattr(kind, 'describe', lambda self, reason: self.name)
    assert here.engines_here()[:2] == ['Swin blocks: kernels', 'neck and heads: onednn']


def test_the_gain_is_the_figure_of_the_performance_page():
    times = re.search(r'([\d.]+) times as fast', KernelsBackend.gain)[1]
    page = (REPOSITORY / 'docs' / 'performance.md').read_text()
    assert re.search(rf'\| \*\*ours W8A8\*\* \|.*\| {re.escape(times)}x \|', page)
