"""What goes to C++ is looked at first: another shape, type or device is an error by name, never a read behind memory.

The engines in plain torch refuse the same with the same words.
"""

from __future__ import annotations

import ctypes

import pytest
import torch
from integer_twin import integer, simulated

from mixaq_mmdet.deploy import kernels as package
from mixaq_mmdet.deploy.layouts import Grid, LinearWeights
from mixaq_mmdet.deploy.tensor_checks import checked, checked_in_place
from mixaq_mmdet.windows.assignment import Segment, TierCounts, assign, tier_counts
from mixaq_mmdet.windows.geometry import window_grid

KERNELS, REASON = package.load()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')
ENGINES = ['torch', pytest.param('kernels', marks=needs_kernels)]


@pytest.fixture(scope='module')
def model():
    return simulated('RepQ', low_ratios=0.4, prune_ratios=0.2)


@pytest.fixture(scope='module', params=ENGINES)
def twin(request, model):
    return integer(model, request.param)


@pytest.mark.parametrize(
    ('images', 'found'),
    [
        (torch.zeros(1, 1, 50, 67), r'\(1, 1, 50, 67\) float32 on cpu'),
        (torch.zeros(1, 4, 50, 67), r'\(1, 4, 50, 67\)'),
        (torch.zeros(3, 50, 67), r'\(3, 50, 67\)'),
        (torch.zeros(1, 3, 50, 67, dtype=torch.float64), 'float64'),
        (torch.zeros(1, 3, 50, 67, dtype=torch.uint8), 'uint8'),
    ],
)
def test_images_of_another_kind_are_refused(twin, images, found):
    with pytest.raises(ValueError, match=rf'images: .*{found}.*; give float32 of shape \(batch, 3, height, width\)'):
        twin(images)


def test_equal_views_have_equal_maps(twin):
    whole = torch.randn(2, 3, 100, 134, generator=torch.Generator().manual_seed(0))
    view = whole[:, :, ::2, ::2]
    assert all(torch.equal(a, b) for a, b in zip(twin(view), twin(view.contiguous()), strict=True))


def run_of(size=(8, 12), window=4, batch=1):
    grid = window_grid(*size, window, 0)
    order = torch.arange(len(grid.rows)).expand(batch, -1)
    return assign(order, tier_counts(len(grid.rows), 0.5), grid, batch).runs[0]


@pytest.fixture(scope='module', params=ENGINES)
def block(request, model):
    return integer(model, request.param).stages[0].blocks[0].engine


@pytest.mark.parametrize(
    ('stream', 'found'),
    [
        (torch.zeros(96, 48), r'\(96, 48\)'),
        (torch.zeros(96, 32, dtype=torch.float64), 'float64'),
        (torch.zeros(96), r'\(96,\)'),
        (torch.zeros(96, 32, device='meta'), 'on meta'),
    ],
)
def test_streams_of_another_kind_are_refused(block, stream, found):
    with pytest.raises(ValueError, match=rf'stream: .*{found}.*; give float32 of shape \(rows, 32\) on the CPU'):
        block.run(stream, run_of())


def test_a_stream_with_gaps_is_refused(block):
    with pytest.raises(ValueError, match='stream has gaps between its rows and is written in place'):
        block.run(torch.zeros(96, 64)[:, :32], run_of())


@needs_kernels
@pytest.mark.parametrize(
    ('edit', 'found'),
    [
        (lambda run: run._replace(rows=run.rows + 1), 'a row lies outside of the stream'),
        (lambda run: run._replace(rows=run.rows - 1), 'a row lies outside of the stream'),
        (lambda run: run._replace(rows=run.rows[:-1]), 'windows without padding lack tokens'),
        (lambda run: run._replace(windows=run.windows + 1), 'windows without padding lack tokens'),
        (lambda run: run._replace(high_windows=run.windows + 1), 'more high windows than windows'),
        (lambda run: run._replace(slots=torch.arange(96) + 1), 'a slot lies outside of the windows'),
        (lambda run: run._replace(slots=torch.arange(96).flip(0)), 'slots are not in order'),
        (lambda run: run._replace(slots=torch.arange(95)), r'slots of the run: \(95,\)'),
        (lambda run: run._replace(rows=run.rows.int()), 'rows of the run: .*int32'),
        (lambda run: run._replace(segments=(Segment(0, 6, 1),)), 'mask 1 is none of the 1 of this block'),
    ],
)
def test_runs_of_another_map_are_refused(model, edit, found):
    block = integer(model, 'kernels').stages[0].blocks[0].engine
    with pytest.raises(ValueError, match=found):
        block.run(torch.zeros(96, 32), edit(run_of()))


def layer(outputs, inputs):
    codes = torch.zeros(outputs, inputs, dtype=torch.int8)
    return LinearWeights(codes, torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32), torch.zeros(outputs))


@needs_kernels
@pytest.mark.parametrize('images', [torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 8, 8).double(), torch.zeros(3, 8, 8)])
def test_the_embedding_looks_at_its_images(images):
    embedding = package.IntegerEmbedding(KERNELS, layer(32, 48), Grid(1.0, 0, 8), None, None)
    with pytest.raises(ValueError, match=r'images: .*; give float32 of shape \(batch, 3, height, width\)'):
        embedding.run(images)


@needs_kernels
@pytest.mark.parametrize(
    ('x', 'size'), [(torch.zeros(1, 16, 32), (4, 4)), (torch.zeros(1, 16, 16), (4, 5)), (torch.zeros(16, 16), (4, 4))]
)
def test_merging_looks_at_its_stream(x, size):
    norm = torch.ones(64)
    merging = package.IntegerMerging(KERNELS, layer(32, 64), norm, norm, Grid(1.0, 0, 8))
    with pytest.raises(ValueError, match=rf'stream: .*; give float32 of shape \(batch, {size[0] * size[1]}, 16\)'):
        merging.run(x, size)


@needs_kernels
@pytest.mark.parametrize(
    ('x', 'gamma', 'message'),
    [
        (torch.zeros(1, 15, 32), torch.ones(32), r'stream: \(1, 15, 32\)'),
        (torch.zeros(1, 16, 32), torch.ones(16), r'norm: \(16,\)'),
        (torch.zeros(1, 16, 24), torch.ones(24), 'multiples of 16 channels'),
    ],
)
def test_the_output_norm_looks_at_its_stream_and_parameters(x, gamma, message):
    with pytest.raises(ValueError, match=message):
        package.output_norm(KERNELS, x, gamma, gamma, (4, 4))


@needs_kernels
def test_ranking_and_choosing_look_at_their_windows():
    stream, content = torch.ones(1, 8, 8, 16), torch.ones(1, 8, 8)
    with pytest.raises(ValueError, match=r'content: \(1, 8, 7\)'):
        package.rank(KERNELS, stream, torch.ones(1, 8, 7), 4)
    with pytest.raises(ValueError, match=r'stream: .*float64'):
        package.rank(KERNELS, stream.double(), content, 4)
    with pytest.raises(ValueError, match=r'images: .*float64'):
        package.look(KERNELS, torch.ones(1, 3, 8, 8, dtype=torch.float64), 4)
    _, _, order = package.rank(KERNELS, stream, content, 4)[0]
    with pytest.raises(ValueError, match=r'order: \(1, 4\)'):
        package.assign(KERNELS, order, TierCounts(4, 0, 0), (8, 12), 4, 0)
    with pytest.raises(ValueError, match=r'counts: \(3, 2, 0\) windows; their sum must be the 4'):
        package.assign(KERNELS, order, TierCounts(3, 2, 0), (8, 8), 4, 0)


@needs_kernels
@pytest.mark.parametrize('entry', ['embed', 'merge', 'output', 'rank'])
def test_cplusplus_counts_again(entry):
    """Sizes that Python passed wrongly: an error, before any address is computed."""
    buffer = torch.zeros(4096)
    address = buffer.data_ptr()
    norm = torch.ones(64)
    if entry == 'embed':
        made = package.IntegerEmbedding(KERNELS, layer(32, 48), Grid(1.0, 0, 8), None, None)._embedding
    elif entry == 'merge':
        made = package.IntegerMerging(KERNELS, layer(32, 64), norm, norm, Grid(1.0, 0, 8))._merging
    calls = {
        'embed': lambda: (ctypes.addressof(made), address, 191, 1, 8, 8, address, 128, 1),
        'merge': lambda: (ctypes.addressof(made), address, 256, 1, 4, 4, address, 127, 1),
        'output': lambda: (address, address, address, 1e-5, 1, 16, 16, address, 255, 1),
        'rank': lambda: (address, 24, address, 1, 4, 4, 2, 1.0, address, address, address, address, 1),
    }
    with pytest.raises(ValueError, match='the kernels refuse their input'):
        KERNELS.call(entry, *calls[entry]())


def test_checked_tensors_keep_their_memory():
    x = torch.zeros(4, 6)
    assert checked(x, 'x', (4, 'columns')).data_ptr() == x.data_ptr()
    assert checked_in_place(x, 'x', ('rows', 6)) is x
    assert checked(x.t(), 'x', (6, 4)).is_contiguous()
    with pytest.raises(ValueError, match=r'^x: \(4, 6\) float32 on cpu; give int64 of shape \(rows, 6\) on the CPU$'):
        checked(x, 'x', ('rows', 6), torch.int64)
