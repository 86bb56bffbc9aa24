"""What the doctor looks at: one entry per component, with the source of its probe and the way to mend it."""

from __future__ import annotations

from dataclasses import dataclass

from .stacks import TESTED, Stack

TESTED_PYTHONS = ('3.10', '3.11', '3.12', '3.13')  # `make test-pythons`


@dataclass(frozen=True)
class Component:
    """One row of the table.

    Attributes:
        name: the first column.
        probe: Python source run in a process of its own; it may set ``report['found']`` and fails by raising.
        fix: what to do when the probe fails and the error gives no better hint; ``{mmcv}`` and the like stand for
            the tested pins of the stack that is here.
        distributions: under which names pip may know it, the tested one first.
        required: whether detection needs it.
        after: components without which it cannot work; while one of them is broken it is not judged by itself.
        stack: the only stack that needs it.
    """

    name: str
    probe: str
    fix: str
    distributions: tuple[str, ...] = ()
    required: bool = True
    after: tuple[str, ...] = ()
    stack: str | None = None

    def tested(self, stack: Stack) -> tuple[str, ...]:
        """The tested versions, none of what has no version to compare."""
        if self.name == 'python':
            return TESTED_PYTHONS
        name = self.distributions[0] if self.distributions else self.name
        version = TESTED.get(stack.distributions.get(name, name))
        return (version,) if version else ()


SETUPTOOLS_FIX = 'pip install "setuptools>=77.0.3,<82"'
MMCV_FIX = (
    'make setup, or: MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall {mmcv}'
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
    Component('python', _PYTHON, 'install Python 3.10 to 3.13'),
    Component('torch', _TORCH, 'make setup, or: pip install {torch}', ('torch',)),
    Component('numpy', _import('numpy'), 'pip install {numpy}', ('numpy',)),
    Component(
        'opencv',
        'import cv2',  # pip's version has a fourth number that cv2.__version__ lacks
        'pip install {opencv-python}',
        ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python', 'opencv-contrib-python-headless'),
        after=('numpy',),
    ),
    Component(
        'pycocotools',
        'from pycocotools import coco, mask',
        'pip install {pycocotools}',
        ('pycocotools',),
        after=('numpy',),
    ),
    # the forks read no pkg_resources
    Component('setuptools', _SETUPTOOLS, SETUPTOOLS_FIX, ('setuptools',), stack='openmmlab'),
    Component(
        'mmengine',
        _import('mmengine') + '\nimport mmengine.runner',
        'pip install {mmengine}',
        ('mmengine', 'mmengine-lite', 'onedl-mmengine'),
        after=('torch', 'numpy', 'opencv'),
    ),
    Component(
        'mmcv',
        _import('mmcv'),
        MMCV_FIX,
        ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
        after=('mmengine',),
    ),
    Component('mmcv ops', _MMCV_OPS, MMCV_FIX, after=('torch', 'mmcv')),
    Component(
        'mmdet',
        _import('mmdet'),
        'pip install {mmdet}',
        ('mmdet', 'onedl-mmdetection'),
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
        'detection does not need it; pip install {mmpretrain} and a torchvision that matches torch',
        ('mmpretrain', 'onedl-mmpretrain'),
        required=False,
        after=('mmcv', 'torchvision'),
    ),
)

COMPILER = Component(
    'compiler',
    '',
    'needed to build mmcv and the kernels of converted models: install a C++17 compiler such as g++, or set CXX',
    required=False,
)
_ENGINES = """
import mixaq_mmdet
from mixaq_mmdet.deploy.backends.here import engines_here
report['lines'] = engines_here()
"""
ENGINES = Component('engines', _ENGINES, 'see the reason below', required=False)
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
    (r'MMEngine==\S+ is used but incompatible', 'pip install {mmengine}'),
    (r'numpy\.\w+ size changed|compiled using NumPy 1|_ARRAY_API', 'reinstall it for this numpy: pip install -U'),
)
