"""The doctor on healthy and broken stacks. Broken ones are made of stub packages: ``-S`` hides the real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from tool_process import REPOSITORY, run_process

from mixaq_mmdet.doctor.components import COMPONENTS
from mixaq_mmdet.doctor.stacks import STACKS, TESTED

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


@pytest.mark.parametrize('flags', ['-mmixaq_mmdet.compat', '-uBm mixaq_mmdet.compat', '-Xdev -S -m mixaq_mmdet.compat'])
def test_doctor_is_recognised_however_it_is_called(stubs, tmp_path, flags):
    process = run_process(sys.executable, *flags.split(), cwd=tmp_path, **stubs(**{'torch/__init__.py': NOT_THERE}))
    assert process.stdout.startswith('component'), process.stdout


@pytest.mark.parametrize('flags', ['program.py', '-m program'])
def test_other_programs_get_the_whole_package(tmp_path, flags):
    (tmp_path / 'program.py').write_text('import mixaq_mmdet\nassert mixaq_mmdet.models.TwoBranchSwin\n')
    command = [sys.executable, *flags.split(), '-m', 'mixaq_mmdet.compat']
    process = run_process(*command, cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    assert process.returncode == 0, process.stdout


def test_tested_versions_are_those_of_the_constraints():
    """Both ways: what is tested is pinned, and the table knows the tested version of every component that is pinned."""
    lines = (REPOSITORY / 'constraints.txt').read_text().splitlines()
    # where Python 3.10 has a pin of its own, the one for this interpreter counts
    other = 'python_version <' if sys.version_info >= (3, 11) else 'python_version >='
    pins = [line.partition(';')[0].strip() for line in lines if '==' in line and other not in line]
    pinned = dict(pin.split('==') for pin in pins if not pin.startswith('#'))
    for name, version in TESTED.items():
        assert pinned[name] == version, name
    for stack in STACKS:
        for component in COMPONENTS:
            for name in component.distributions[:1]:
                name = stack.distributions.get(name, name)
                assert component.tested(stack) == ((pinned[name],) if name in pinned else ()), name


def dist_info(name: str, version: str) -> dict[str, str]:
    """The file by which pip knows a distribution."""
    folder = f'{name.replace("-", "_")}-{version}.dist-info'
    return {f'{folder}/METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'}


ONEDL = {
    'mmengine-0.10.7.dist-info/METADATA': NOT_THERE,
    **dist_info('onedl-mmengine', '0.10.12'),
    **dist_info('onedl-mmcv', '2.3.6'),
    **dist_info('onedl-mmdetection', '3.5.1'),
    'mmengine/__init__.py': '__version__ = "0.10.12"',
    'mmcv/__init__.py': '__version__ = "2.3.6"',
    'mmdet.py': '__version__ = "3.5.1"',
    'pkg_resources.py': NOT_THERE,
}


def test_the_forks_are_compared_with_their_own_tested_versions(stubs, tmp_path):
    """They also need no pkg_resources."""
    _, text, table = consult('-S', cwd=tmp_path, **stubs(**ONEDL))
    for name, version in (('mmengine', '0.10.12'), ('mmcv', '2.3.6'), ('mmdet', '3.5.1')):
        assert re.search(rf'{re.escape(version)} +{re.escape(version)} +ok +-', table[name]), text
    assert 'setuptools' not in table
    assert 'STACK=onedl' in text


def test_fixes_name_the_packages_of_the_stack_that_is_here(stubs, tmp_path):
    refusal = 'raise AssertionError("MMCV==1.0 is used but incompatible.")'
    status, _, table = consult('-S', cwd=tmp_path, **stubs(**{**ONEDL, 'mmdet.py': refusal}))
    assert status == 1
    assert table['mmdet'].endswith('onedl-mmcv==2.3.6')


def test_two_stacks_in_one_environment_are_a_conflict(stubs, tmp_path):
    changes = {
        **dist_info('onedl-mmengine', '0.10.12'),
        **dist_info('mmcv', '2.1.0'),
        **dist_info('onedl-mmcv', '2.3.6'),
    }
    status, text, table = consult('-S', cwd=tmp_path, **stubs(**changes))
    assert status == 1
    assert 'pip uninstall -y mmengine onedl-mmengine, then: pip install mmengine==0.10.7' in table['mmengine']
    assert 'mmcv and onedl-mmcv are both installed' in text


def test_a_part_of_the_other_stack_is_named(stubs, tmp_path):
    _, text, table = consult('-S', cwd=tmp_path, **stubs(**dist_info('onedl-mmdetection', '3.5.1')))
    assert 'ok (of another stack: onedl-mmdetection)' in table['mmdet'], text


def test_healthy_stack(tmp_path):
    status, text, table = consult(cwd=tmp_path)
    assert status == 0, text
    assert 'Detection can run here.' in text
    required = ('python', 'torch', 'numpy', 'opencv', 'pycocotools', 'mmengine', 'mmcv', 'mmcv ops')
    # the forks need no pkg_resources, so that any setuptools will do
    of_openmmlab = ('setuptools',) if any(metadata.distributions(name='mmengine')) else ()
    for name in (*required, *of_openmmlab, 'mmdet', 'mixaq_mmdet'):
        assert ' ok' in table[name], text
    at = text.index('Converted models on this CPU:')
    assert re.search(r'Swin blocks: (int8 \(|exact integers in plain torch, because this CPU lacks avx2)', text[at:])
    assert 'neck and heads: ' in text[at:]
    assert 'RoIAlign, NMS and masks: C++ for this CPU' in text[at:]


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
