"""Engines are picked by name or by preference; a new one is one class; structures agree on both sides of ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import tiny_backbone
import torch
from integer_twin import integer, simulated

from mixaq_mmdet.deploy import kernels
from mixaq_mmdet.deploy.backends import BACKENDS, Backend, OnednnBackend, engines, pick
from mixaq_mmdet.deploy.kernels import structures
from mixaq_mmdet.deploy.layouts import BlockWeights
from mixaq_mmdet.deploy.torch_block import TorchBlock

KERNELS, REASON = kernels.load()


@pytest.fixture(scope='module')
def model():
    return simulated('RepQ', low_ratios=0.4, prune_ratios=0.2)


@pytest.fixture
def accelerator():
    """A backend of ten lines, registered for one test."""
    blocks = []

    @BACKENDS.register_module(name='accelerator')
    class Accelerator(Backend):
        name = 'accelerator'

        def refuses(self, part):
            return '' if part.num_heads < 3 else 'three heads are too many'

        def block(self, weights):
            blocks.append(TorchBlock(weights))
            return blocks[-1]

    yield blocks
    BACKENDS.module_dict.pop('accelerator')


def test_a_new_engine_is_one_class(model, accelerator):
    assert 'accelerator' in engines()
    twin = integer(model, 'accelerator')
    assert twin.plan.engine == 'accelerator'
    assert 'run as integers by accelerator; pruned' in twin.plan.line
    assert [block.engine for stage in twin.stages for block in stage.blocks] == accelerator
    x = tiny_backbone.images(1)[0]
    assert all(torch.equal(a, b) for a, b in zip(twin(x), integer(model)(x), strict=True))


def test_what_it_refuses_it_says(accelerator):
    model = simulated('MinMax', embed_dims=48, num_heads=(3, 6))
    with pytest.raises(ValueError, match='engine="accelerator" cannot run here: three heads are too many; use engine='):
        integer(model, 'accelerator', embed_dims=48, num_heads=(3, 6))


def test_auto_takes_what_it_prefers_and_says_why_not_another(accelerator, monkeypatch):
    """Unless it is given a preference, a new engine runs by name only."""
    monkeypatch.setattr(BACKENDS.module_dict['kernels'], 'load', lambda: (None, 'no kernels in this test'))
    monkeypatch.setattr(BACKENDS.module_dict['onednn'], 'load', lambda: (OnednnBackend(), ''))
    part = BlockWeights(*[None] * 8, grids=(), num_heads=1, scale=1.0)
    backend, reason = pick('auto', [part])
    assert (backend.name, reason) == ('onednn', 'no kernels in this test')
    monkeypatch.setattr(BACKENDS.module_dict['onednn'], 'load', lambda: (None, 'products saturate'))
    backend, reason = pick('auto', [part])
    assert (backend.name, reason) == ('torch', 'no kernels in this test; products saturate')
    monkeypatch.setattr(BACKENDS.module_dict['accelerator'], 'preference', 9)
    assert pick('auto', [part])[0].name == 'accelerator'


def test_an_engine_without_blocks_says_so():
    class Layers(Backend):
        name = 'layers'

    with pytest.raises(NotImplementedError, match="engine 'layers' runs no Swin blocks"):
        Layers().block(None)


@pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')
def test_structures_are_compared_when_the_library_is_loaded(monkeypatch):
    class Grid(ctypes.Structure):
        _fields_ = [(name, ctypes.c_int64) for name in ('height', 'width', 'window')]

    monkeypatch.setitem(structures.MIRRORED, 'Grid', Grid)
    with pytest.raises(RuntimeError, match=r'structure Grid has 32 bytes in the C.. library and 24'):
        kernels.Kernels(KERNELS.path)


def test_every_structure_is_compared():
    here = {cls for cls in vars(structures).values() if isinstance(cls, type) and issubclass(cls, ctypes.Structure)}
    assert here - {ctypes.Structure} == {*structures.MIRRORED.values(), *structures.PORTABLE_MIRRORED.values()}
    sources = ' '.join(source.read_text() for source in Path(kernels.__file__).parent.rglob('src/**/*.cpp'))
    mirrored = {**structures.MIRRORED, **structures.PORTABLE_MIRRORED}
    assert all(f'MIXAQ_SIZE_OF({name})' in sources for name in mirrored)
