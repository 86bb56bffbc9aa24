"""The two stacks: OpenMMLab's packages, and the maintained onedl-* forks of them, which have the same import names."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
from dataclasses import dataclass

# What the tests run on, as in constraints.txt (a wheel does not carry that file).
TESTED = {
    'torch': '2.13.0',
    'numpy': '2.4.6' if sys.version_info >= (3, 11) else '2.2.6',
    'opencv-python': '5.0.0.93',
    'pycocotools': '2.0.11',
    'setuptools': '81.0.0',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmpretrain': '1.2.0',
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmpretrain': '1.3.6',
    'torchvision': '0.28.0',
}


@dataclass(frozen=True)
class Stack:
    """Who publishes the four mm packages.

    Attributes:
        name: what ``make setup STACK=`` takes.
        label: the last line but one of the doctor's answer.
        distributions: pip's name of each import name.
    """

    name: str
    label: str
    distributions: dict[str, str]

    def fill(self, text: str) -> str:
        """``text`` with a tested pin of this stack in place of each ``{module}``, as pip takes it."""
        for module in (*self.distributions, *TESTED):
            distribution = self.distributions.get(module, module)
            text = text.replace(f'{{{module}}}', f'{distribution}=={TESTED[distribution]}')
        return text


OPENMMLAB = Stack(
    'openmmlab', "OpenMMLab's packages", {name: name for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')}
)
ONEDL = Stack(
    'onedl',
    'the onedl-* packages',
    {
        'mmengine': 'onedl-mmengine',
        'mmcv': 'onedl-mmcv',
        'mmdet': 'onedl-mmdetection',
        'mmpretrain': 'onedl-mmpretrain',
    },
)
STACKS = (OPENMMLAB, ONEDL)


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that pip knows here."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        except Exception as error:  # metadata of a broken installation may be unreadable
            versions[name] = f'unreadable metadata ({type(error).__name__})'
    return versions


def stack_here() -> Stack:
    """The stack of this environment: that of its mmengine, else of its mmcv; OpenMMLab's where there is none."""
    for module in ('mmengine', 'mmcv'):
        for stack in STACKS:
            if installed([stack.distributions[module]]):
                return stack
    return OPENMMLAB


def owners(module: str) -> list[str]:
    """Which distributions of the stacks hold the folder of ``module``; with two of them its files are a mixture."""
    return list(installed(stack.distributions[module] for stack in STACKS if module in stack.distributions))
