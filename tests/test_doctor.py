"""The doctor on healthy and broken stacks. Broken ones are made of stub packages: ``-S`` hides the real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tool_process import REPOSITORY, run_process

from mixaq_mmdet.doctor import doctor_is_running
from mixaq_mmdet.doctor.components import COMPONENTS, TESTED

HEALTHY = {
    'torch/__init__.py': (
        '__version__ = "2.13.0+cpu"\n'
        'class _Tensor:\n    numpy = staticmethod(lambda: None)\n'
        'ones = tensor = lambda *args, **kwargs: _Tensor()\n'
        'class cuda:\n    is_available = staticmethod(lambda: False)\n'
    ),
    'numpy.py': '__version__ = "2.4.6"',
    'cv2.py': '',
    'pycocotools/coco.py': '',
    'pycocotools/mask.py': '',
    'setuptools.py': '__version__ = "81.0.0"',
    'pkg_resources.py': '',
    'mmengine/__init__.py': '__version__ = "0.10.7"',
    'mmengine/runner.py': '',
    'mmcv/__init__.py': '__version__ = "2.1.0"',
    'mmcv/ops.py': 'nms = lambda boxes, scores, threshold: (None, [0])',
    'mmdet.py': '__version__ = "3.3.0"',
    'opencv_python-5.0.0.93.dist-info/METADATA': 'Metadata-Version: 2.1\nName: opencv-python\nVersion: 5.0.0.93\n',
    'mmengine-0.10.7.dist-info/METADATA': 'Metadata-Version: 2.1\nName: mmengine\nVersion: 0.10.7\n',
    'pycocotools-2.0.11.dist-info/METADATA': 'Metadata-Version: 2.1\nName: pycocotools\nVersion: 2.0.11\n',
}
NOT_THERE = None
Doctor = tuple[int, str, dict[str, str]]


@pytest.fixture
def stubs(tmp_path):
    """Write a stack of stubs, HEALTHY but for the given changes; returns the environment that shows it."""

    def write(**changes: str | None) -> dict[str, str]:
        for name, text in {**HEALTHY, **changes}.items():
            if text is not NOT_THERE:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
        return {'PYTHONPATH': os.pathsep.join([str(tmp_path), str(REPOSITORY)])}

    return write


def consult(*flags: str, cwd: Path, **environment: str) -> Doctor:
    """Exit status, whole text, and the table's lines by component; a traceback fails the test right here."""
    process = run_process(sys.executable, *flags, '-m', 'mixaq_mmdet.compat', cwd=cwd, **environment)
    text = process.stdout
    assert 'Traceback' not in text
    assert 'Warning' not in text
    lines = text.splitlines()
    assert [word for word in lines[0].split() if word] == ['component', 'found', 'tested', 'verdict', 'fix']
    table = lines[2 : lines.index('')]
    width = lines[1].index(' ')
    return process.returncode, text, {line[:width].strip(): line[width:].strip() for line in table}


@pytest.mark.parametrize(
    ('command_line', 'expected'),
    [
        ('python -m mixaq_mmdet.compat', True),
        ('python -mmixaq_mmdet.compat', True),
        ('python -X dev -W ignore -m mixaq_mmdet.compat', True),
        ('python -Xdev -Im mixaq_mmdet.compat --verbose', True),
        ('python -uBmmixaq_mmdet.compat', True),
        ('python --check-hash-based-pycs always -m mixaq_mmdet.compat', True),
        ('python train.py -m mixaq_mmdet.compat', False),
        ('python -m pytest -m mixaq_mmdet.compat', False),
        ('python -c code -m mixaq_mmdet.compat', False),
        ('python -W -m mixaq_mmdet.compat', False),
        ('python -m mixaq_mmdet.compatibility', False),
        ('python - -m mixaq_mmdet.compat', False),
        ('python', False),
    ],
)
def test_doctor_is_recognised_by_the_command_line(command_line, expected):
    assert doctor_is_running(command_line.split()) is expected


def test_tested_versions_are_those_of_the_constraints():
    """Both ways: what is tested is pinned, and the table knows the tested version of every component that is pinned."""
    lines = (REPOSITORY / 'constraints.txt').read_text().splitlines()
    pinned = dict(line.split('==') for line in lines if '==' in line and not line.startswith('#'))
    for name, version in TESTED.items():
        if name != 'python':
            assert pinned[name] == version, name
    for component in COMPONENTS:
        for name in component.distributions[:1]:
            assert component.tested == pinned.get(name, '-'), name


def test_healthy_stack(tmp_path):
    status, text, table = consult(cwd=tmp_path)
    assert status == 0, text
    assert 'Detection can run here.' in text
    required = ('python', 'torch', 'numpy', 'opencv', 'pycocotools', 'setuptools', 'mmengine', 'mmcv', 'mmcv ops')
    for name in (*required, 'mmdet', 'mixaq_mmdet'):
        assert ' ok' in table[name], text


def test_no_torch(stubs, tmp_path):
    """What needs torch waits for it; what is simply not installed says how to install it."""
    environment = stubs(**{'torch/__init__.py': NOT_THERE, 'mmengine/runner.py': 'import torch'})
    status, text, table = consult('-S', cwd=tmp_path, **environment)
    assert status == 1
    assert re.search(r'missing +make setup, or: pip install torch==2\.13\.0', table['torch'])
    assert re.search(r'broken +first torch', table['mmengine'])
    assert 'not checked' in table['mixaq_mmdet']
    assert text.rstrip().endswith('Detection cannot run here; mend torch.')


def test_nothing_installed_at_all(tmp_path):
    status, _, table = consult('-S', cwd=tmp_path, PYTHONPATH=str(REPOSITORY))
    assert status == 1
    assert 'missing' in table['numpy']
    assert 'missing, optional' in table['mmpretrain']
    assert ' ok' in table['python']


def test_mmcv_without_ops(stubs, tmp_path):
    environment = stubs(
        **{
            'mmcv/ops.py': 'import mmcv._ext',
            'mmcv_lite-2.1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: mmcv-lite\nVersion: 2.1.0\n',
        }
    )
    status, text, table = consult('-S', cwd=tmp_path, **environment)
    assert status == 1
    assert ' ok' in table['mmcv']
    assert 'MMCV_WITH_OPS=1 pip install' in table['mmcv ops']
    assert "mmcv ops: ModuleNotFoundError: No module named 'mmcv._ext'" in text
    assert text.rstrip().endswith('mend mmcv ops.')


def test_setuptools_without_pkg_resources(stubs, tmp_path):
    environment = stubs(**{'setuptools.py': '__version__ = "82.0.0"', 'pkg_resources.py': NOT_THERE})
    status, text, table = consult('-S', cwd=tmp_path, **environment)
    assert status == 1
    assert re.search(r'82\.0\.0 +81\.0\.0 +broken +pip install "setuptools>=77\.0\.3,<82"', table['setuptools']), text


def test_hosts_refusal_becomes_its_fix(stubs, tmp_path):
    """mmdet asserts the range of mmcv; the fix is another mmcv, not another mmdet."""
    environment = stubs(**{'mmdet.py': 'raise AssertionError("MMCV==2.2.0 is used but incompatible.")'})
    status, _, table = consult('-S', cwd=tmp_path, **environment)
    assert status == 1
    assert 'mmcv==2.1.0' in table['mmdet']


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ('import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)', 'crashed with SIGSEGV'),
        ('raise SystemExit("bye")', 'SystemExit: bye'),
        ('import os\nos._exit(3)', 'exited with status 3'),
        ('raise Exception("\\udc80 \\u1234")', 'Exception'),
        ('def (', 'SyntaxError'),
    ],
)
def test_components_that_take_the_process_along(stubs, tmp_path, source, reason):
    status, text, table = consult('-S', cwd=tmp_path, **stubs(**{'numpy.py': source}), PYTHONIOENCODING='ascii')
    assert status == 1
    assert 'broken' in table['numpy']
    assert reason in text


def test_package_that_fails_although_its_parts_work(stubs, tmp_path):
    status, text, table = consult('-S', cwd=tmp_path, **stubs())
    assert status == 1
    assert ' ok' in table['mmdet']
    assert 'broken' in table['mixaq_mmdet']
    assert 'mixaq_mmdet: ImportError: mixaq_mmdet could not load' in text


def test_unloadable_torchvision_is_no_obstacle(tmp_path):
    """Both optional rows show that importing the package mends them."""
    folder = tmp_path / 'torchvision'
    (folder / 'transforms').mkdir(parents=True)
    (folder / 'ops').mkdir()
    (folder / '__init__.py').write_text(
        'import torch\n'
        '__version__ = "0.28.0"\n'
        '@torch.library.register_fake("torchvision::nms")\ndef nms(dets, scores, iou_threshold): ...\n'
        'from . import ops, transforms\n'
    )
    (folder / 'ops' / '__init__.py').write_text('')
    (folder / 'ops' / 'boxes.py').write_text('')
    (folder / 'transforms' / '__init__.py').write_text('')
    (folder / 'transforms' / 'functional.py').write_text('')
    (folder / 'transforms' / 'transforms.py').write_text('class InterpolationMode: ...')
    status, text, table = consult(cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    assert status == 0, text
    assert 'ok after import mixaq_mmdet' in table['torchvision'], text
    assert 'ok after import mixaq_mmdet' in table['mmpretrain'], text


def test_reader_that_goes_away(stubs, tmp_path):
    """``... | head -1`` must not end in a BrokenPipeError."""
    command = f'"{sys.executable}" -S -m mixaq_mmdet.compat | true; exit "${{PIPESTATUS[0]}}"'
    process = subprocess.run(
        ['bash', '-c', command], cwd=tmp_path, env={**os.environ, **stubs()}, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr == ''


@pytest.mark.parametrize('source', [NOT_THERE, 'raise AssertionError("wrong version")', 'raise OSError("libc10.so")'])
def test_failing_import_names_the_doctor(stubs, tmp_path, source):
    environment = stubs(**{'torch/__init__.py': source})
    process = run_process(sys.executable, '-S', '-c', 'import mixaq_mmdet', cwd=tmp_path, **environment)
    last = process.stdout.strip().splitlines()[-1]
    assert last.startswith('ImportError: mixaq_mmdet could not load')
    assert 'python -m mixaq_mmdet.compat' in last
