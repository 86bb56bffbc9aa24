"""What the package's folders may know of each other: quantization and windows nothing of mm*, nobody a method."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import mixaq_mmdet
from mixaq_mmdet.deploy.grids import weight_codes
from mixaq_mmdet.quantization import methods_that
from mixaq_mmdet.quantization.methods import Method
from mixaq_mmdet.registry import QUANT_METHODS

PACKAGE = Path(mixaq_mmdet.__file__).parent
METHODS = PACKAGE / 'quantization/methods'


def sources(folder: str = '.') -> list[Path]:
    return sorted((PACKAGE / folder).rglob('*.py'))


def imported(path: Path) -> Iterator[str]:
    """First parts of the names of what a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split('.')[0]


@pytest.mark.parametrize('folder', ['quantization', 'windows'])
def test_nothing_of_the_host_is_imported(folder):
    found = {path.name: host for path in sources(folder) for host in imported(path) if host.startswith('mm')}
    assert sources(folder)
    assert not found


def test_nobody_knows_a_method_by_name():
    """But the Python API, whose default is one."""
    names = {name for name, cls in QUANT_METHODS.module_dict.items() if cls.__module__.startswith('mixaq_mmdet.')}
    assert len(names) > 5
    found = [
        f'{path.relative_to(PACKAGE)}:{node.lineno} {node.value}'
        for path in sources()
        if METHODS not in path.parents and path != PACKAGE / 'api.py'
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert not found


def test_a_new_method_is_found_by_what_it_says_of_itself():
    @QUANT_METHODS.register_module()
    class TestTrait(Method):
        trained = allocates_bits = fits_low_alone = True
        converts = False

    try:
        assert methods_that('trained') == ['LSQ', 'OFQ', 'TestTrait']
        assert methods_that('fits_low_alone') == ['LSQ', 'OFQ', 'TestTrait']
        assert methods_that('allocates_bits') == ['MixQViT', 'TestTrait']
        assert set(QUANT_METHODS.module_dict) - set(methods_that('converts')) == {'AIQViT', 'PTQ4ViT', 'TestTrait'}
        with pytest.raises(
            ValueError,
            match='convert models of APHQ, AdaLog, ERQ, FIMAQ, GLFQ, LSQ, MSE, MinMax, MixQViT, NoisyQuant, OFQ, Perc',
        ):
            weight_codes(nn.Linear(2, 2), 'fc')
    finally:
        del QUANT_METHODS.module_dict['TestTrait']
