"""Fixtures that several test folders share; the builders live in ``tiny_detector.py``."""

from __future__ import annotations

import os
import warnings

# Tiny tensors gain nothing from threads, and on a busy machine spinning threads cost most of the time. Before torch
# is imported; the processes that tests start inherit it.
os.environ.setdefault('OMP_NUM_THREADS', '1')

from pathlib import Path

import pytest
from hypothesis import settings
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import set_random_seed
from tiny_detector import tiny_config, write_tiny_coco

import mixaq_mmdet  # noqa: F401  before any test imports mmdet, which does not load without the shims on some stacks

settings.register_profile('same examples', derandomize=True)
settings.register_profile('new examples')


def pytest_configure(config: pytest.Config) -> None:
    """A red suite means a change, never luck: only nightly runs draw new examples."""
    settings.load_profile('new examples' if config.option.markexpr == 'nightly' else 'same examples')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker('nightly') and not item.get_closest_marker('timeout'):
            item.add_marker(pytest.mark.timeout(3 * 3600))


@pytest.fixture(autouse=True)
def mmdet_scope() -> None:
    """Runs, and builds from other scopes, leave theirs behind: no test depends on which tests ran before it."""
    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != 'mmdet':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # it warns that the scope changes, which is what is wanted
            init_default_scope('mmdet')


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Random weights and images are those of the test, whichever tests ran before it."""
    set_random_seed(0)


@pytest.fixture(scope='session')
def tiny_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a four-image COCO data set; shared by the session, so read only."""
    return write_tiny_coco(tmp_path_factory.mktemp('tiny_coco'))


@pytest.fixture
def tiny_cfg(tiny_coco: Path, tmp_path: Path) -> Config:
    """A fresh runnable config of a tiny stock Mask R-CNN Swin on ``tiny_coco``."""
    return tiny_config(tiny_coco, tmp_path / 'work_dir')
