"""What the doctor looks at: one entry per component, with the source of its probe and the way to mend it."""

from __future__ import annotations

from dataclasses import dataclass

# The stack that the tests run on, as in constraints.txt (a wheel does not carry that file).
TESTED = {
    'python': '3.11',
    'torch': '2.13.0',
    'numpy': '2.4.6',
    'opencv-python': '5.0.0.93',
    'pycocotools': '2.0.11',
    'setuptools': '81.0.0',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmpretrain': '1.2.0',
    'torchvision': '0.28.0',
}


@dataclass(frozen=True)
class Component:
    """One row of the table.

    Attributes:
        name: the first column.
        probe: Python source run in a process of its own; it may set ``report['found']`` and fails by raising.
        fix: what to do when the probe fails and the error gives no better hint.
        distributions: under which names pip may know it, the tested one first.
        required: whether detection needs it.
        after: components without which it cannot work; while one of them is broken it is not judged by itself.
    """

    name: str
    probe: str
    fix: str
    distributions: tuple[str, ...] = ()
    required: bool = True
    after: tuple[str, ...] = ()

    @property
    def tested(self) -> str:
        """The tested version, or '-'."""
        return TESTED.get(self.distributions[0] if self.distributions else self.name, '-')


SETUPTOOLS_FIX = 'pip install "setuptools>=77.0.3,<82"'
MMCV_FIX = (
    'make setup, or: MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall mmcv=='
    + TESTED['mmcv']
)

_PYTHON = """
import platform, sys
report['found'] = platform.python_version()
if sys.version_info < (3, 10):
    raise RuntimeError('Python 3.10 or newer is needed')
"""
_TORCH = """
import torch
report['found'] = torch.__version__
torch.ones(1).numpy()
if torch.cuda.is_available():
    report['found'] += ', ' + torch.cuda.get_device_name(0)
"""
_SETUPTOOLS = """
import setuptools
report['found'] = setuptools.__version__
import pkg_resources
"""
_MMCV_OPS = """
import torch
from mmcv.ops import nms
devices = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
report['found'] = ' and '.join(devices)
for device in devices:
    boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 2.]], device=device)
    kept = nms(boxes, torch.tensor([.9, .8], device=device), .5)[1]
    if len(kept) != 1:
        raise RuntimeError(f'nms on {device} keeps {len(kept)} of two equal boxes')
"""
_MMPRETRAIN = """
import mmpretrain
report['found'] = mmpretrain.__version__
import mmpretrain.datasets, mmpretrain.models
"""
_PACKAGE = """
import mixaq_mmdet
report['found'] = mixaq_mmdet.__version__
from mmengine.utils.dl_utils import collect_env
collect_env()
for name in ('torchvision', 'mmpretrain.datasets', 'mmpretrain.models'):
    try:
        __import__(name)
        report['imports'] = report.get('imports', []) + [name.split('.')[0]]
    except Exception:
        continue
"""


def _import(module: str) -> str:
    return f"import {module}\nreport['found'] = getattr({module}, '__version__', None)"


COMPONENTS = (
    Component('python', _PYTHON, 'install Python 3.11'),
    Component('torch', _TORCH, f'make setup, or: pip install torch=={TESTED["torch"]}', ('torch',)),
    Component('numpy', _import('numpy'), f'pip install numpy=={TESTED["numpy"]}', ('numpy',)),
    Component(
        'opencv',
        'import cv2',  # pip's version has a fourth number that cv2.__version__ lacks
        f'pip install opencv-python=={TESTED["opencv-python"]}',
        ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless'),
        after=('numpy',),
    ),
    Component(
        'pycocotools',
        'from pycocotools import coco, mask',
        f'pip install pycocotools=={TESTED["pycocotools"]}',
        ('pycocotools',),
        after=('numpy',),
    ),
    Component('setuptools', _SETUPTOOLS, SETUPTOOLS_FIX, ('setuptools',)),
    Component(
        'mmengine',
        _import('mmengine') + '\nimport mmengine.runner',
        f'pip install mmengine=={TESTED["mmengine"]}',
        ('mmengine', 'mmengine-lite'),
        after=('torch', 'numpy', 'opencv'),
    ),
    Component('mmcv', _import('mmcv'), MMCV_FIX, ('mmcv', 'mmcv-lite', 'mmcv-full'), after=('mmengine',)),
    Component('mmcv ops', _MMCV_OPS, MMCV_FIX, after=('torch', 'mmcv')),
    Component(
        'mmdet',
        _import('mmdet'),
        f'pip install mmdet=={TESTED["mmdet"]}',
        ('mmdet',),
        after=('mmcv', 'pycocotools'),
    ),
    Component(
        'torchvision',
        _import('torchvision'),
        'detection does not need it; for mmpretrain install the build that matches torch',
        ('torchvision',),
        required=False,
        after=('torch',),
    ),
    Component(
        'mmpretrain',
        _MMPRETRAIN,
        'detection does not need it; pip install -e ".[classification]" and a torchvision that matches torch',
        ('mmpretrain',),
        required=False,
        after=('mmcv', 'torchvision'),
    ),
)

COMPILER = Component(
    'compiler', '', 'needed only to build mmcv: install a C++17 compiler such as g++, or set CXX', required=False
)
PACKAGE = Component('mixaq_mmdet', _PACKAGE, 'see the reason below', ('mixaq_mmdet',))

# An error text that says more than the component's own fix does: (pattern, fix).
HINTS = (
    (r"No module named 'pkg_resources'", SETUPTOOLS_FIX),
    (r"No module named 'mmcv\._ext'", MMCV_FIX),
    (r'_impl: implementation for device', 'FORCE_CUDA=1 ' + MMCV_FIX.removeprefix('make setup, or: ')),
    (r'mmcv/_ext\S*: undefined symbol', MMCV_FIX),
    (r'torchvision::nms', 'install the torchvision built for this torch, or: pip uninstall torchvision'),
    (r'libGL|libgthread|libglib', f'pip install opencv-python-headless=={TESTED["opencv-python"]}'),
    (r'MMCV==\S+ is used but incompatible', MMCV_FIX),
    (r'MMEngine==\S+ is used but incompatible', f'pip install mmengine=={TESTED["mmengine"]}'),
    (r'numpy\.\w+ size changed|compiled using NumPy 1|_ARRAY_API', 'reinstall it for this numpy: pip install -U'),
)
