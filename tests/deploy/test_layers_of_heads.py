"""Convolutions and linear layers from codes: kernels, oneDNN's operators and plain torch against exact arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixaq_mmdet.deploy.backends import BACKENDS, Backend, KernelsBackend, OnednnBackend, pick
from mixaq_mmdet.deploy.backends.onednn import OPERATORS
from mixaq_mmdet.deploy.codes import codes_in_torch, to_codes
from mixaq_mmdet.deploy.exact_layer import ExactLayer
from mixaq_mmdet.deploy.layouts import Geometry, Grid, Layer, LinearWeights
from mixaq_mmdet.deploy.onednn_layer import FinishedLayer, FusedLayer
from mixaq_mmdet.registry import lookup

BACKEND, REASON = OnednnBackend.load()
needs_onednn = pytest.mark.skipif(BACKEND is None, reason=f'no oneDNN int8 operators here: {REASON}')
KERNELS, NO_KERNELS = KernelsBackend.load()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {NO_KERNELS}')
ENGINES = ['torch', pytest.param('onednn', marks=needs_onednn), pytest.param('kernels', marks=needs_kernels)]
GEOMETRIES = {
    'linear': None,
    '1x1': Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1),
    '3x3': Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1),
    '3x3, stride 2': Geometry((3, 3), (2, 2), (1, 1), (1, 1), 1),
    'dilated': Geometry((3, 3), (1, 1), (2, 2), (2, 2), 1),
    '3x3 in two groups': Geometry((3, 3), (1, 1), (1, 1), (1, 1), 2),
}
WEIGHTS = ('symmetric', 'asymmetric', 'odd')
CHANNELS, OUTPUTS = 12, 10


class Maker:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def layer(self, geometry, weights='symmetric', offsets=False, **options) -> Layer:
        places = 1 if geometry is None else geometry.kernel[0] * geometry.kernel[1]
        inputs = CHANNELS * places // (1 if geometry is None else geometry.groups)
        codes = torch.randint(-128, 128, (OUTPUTS, inputs), generator=self.generator)
        zero_point = torch.zeros(OUTPUTS, dtype=torch.int32)
        if weights == 'asymmetric':
            zero_point = torch.randint(-60, 60, (OUTPUTS,), generator=self.generator).int()
        codes = (2 * codes + 1).short() if weights == 'odd' else codes.to(torch.int8)
        scale = 0.002 + 0.01 * torch.rand(OUTPUTS, generator=self.generator)
        grid = Grid(0.03, 100, 8)
        if offsets:
            grid = grid._replace(before=0.3 * self.normal(CHANNELS), after=0.3 * self.normal(CHANNELS))
        return Layer(LinearWeights(codes, scale, zero_point, self.normal(OUTPUTS)), grid, geometry, **options)

    def input(self, geometry, size=(9, 7)) -> Tensor:
        shape = (5, CHANNELS) if geometry is None else (2, CHANNELS, *size)
        return 3 * self.normal(*shape)


@pytest.fixture
def make() -> Maker:
    return Maker()


def engine_for(name: str, layer: Layer) -> Backend:
    """The engine, or the exact one where it refuses the layer, as ``auto`` takes it."""
    if lookup(BACKENDS, name, 'engine').load()[0].refuses(layer):
        name = 'torch'
    return pick(name, [layer])[0]


def simulated(x: Tensor, layer: Layer) -> Tensor:
    """What the fake-quantized layer gives, in float64."""
    weights, grid, geometry = layer.weights, layer.grid, layer.geometry
    steps = (weights.codes.double() - weights.zero_point[:, None]) * weights.scale.double()[:, None]
    values = (codes_in_torch(x, grid).double() - grid.zero_point) * grid.scale
    channel = (-1, 1, 1) if geometry else (-1,)
    if grid.after is not None:
        values = values + grid.after.double().view(channel)
    if geometry is None:
        return F.linear(values, steps, weights.bias.double())
    weight = steps.view(OUTPUTS, -1, *geometry.kernel)
    return F.conv2d(values, weight, weights.bias.double(), *geometry[1:])


@pytest.mark.parametrize('offsets', [False, True])
@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize('engine', ENGINES)
def test_results_are_those_of_the_simulated_layer(engine, geometry, weights, offsets, make):
    layer, x = make.layer(geometry, weights, offsets), make.input(geometry)
    backend = engine_for(engine, layer)
    expected = simulated(x, layer)
    found = backend.layer(layer)(to_codes(x, layer.grid))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    assert geometry is None or found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    'geometry',
    [
        *(Geometry((3, 3), (2, 2), (1, 1), (1, 1), 1), Geometry((4, 4), (4, 4), (0, 0), (1, 1), 1)),
        Geometry((3, 3), (3, 2), (1, 1), (1, 1), 1),
    ],
    ids=['3x3', 'patches', 'another step down'],
)
@pytest.mark.parametrize('width', [1, 2, 4, 5])
@pytest.mark.parametrize('engine', ENGINES)
def test_high_maps_of_one_column_and_more(engine, width, geometry, make):
    """oneDNN's own sums of one column are wrong with AMX, if a step is longer than one."""
    if width < geometry.kernel[1] - 2 * geometry.padding[1]:
        pytest.skip('the kernel is wider than the map')
    layer, x = make.layer(geometry), make.input(geometry, (40, width))
    found = engine_for(engine, layer).layer(layer)(to_codes(x, layer.grid))
    torch.testing.assert_close(found.double(), simulated(x, layer), rtol=1e-5, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('geometry', [None, GEOMETRIES['3x3']], ids=['linear', '3x3'])
@pytest.mark.parametrize('engine', ENGINES)
def test_codes_and_relu(engine, geometry, weights, bits, make):
    out_grid = Grid(0.02 * 2 ** (8 - bits), 3, bits)
    layer, x = make.layer(geometry, weights, relu=True, out_grid=out_grid), make.input(geometry)
    found = engine_for(engine, layer).layer(layer)(to_codes(x, layer.grid))
    expected = codes_in_torch(simulated(x, layer).relu().float(), out_grid)
    apart = (found.int() - expected.int()).abs()
    assert found.dtype == torch.uint8
    assert apart.max() <= 1
    assert apart.sum() <= 2, 'a result on the border of two codes may take either'
    assert int(found.min()) >= 3
    assert int(found.max()) == 2**bits - 1


@needs_kernels
def test_the_kernels_refuse_by_name_what_they_cannot_run(make):
    reasons = {
        '2 groups': make.layer(GEOMETRIES['3x3 in two groups']),
        'offsets of an input that is padded': make.layer(GEOMETRIES['3x3'], offsets=True),
        'GELU behind a layer outside of the blocks': make.layer(None, gelu=True),
        'more than one step of an input': (lambda x: x._replace(grid=x.grid._replace(steps=torch.ones(5))))(
            make.layer(None)
        ),
        '10 inputs are no multiple of 4': (
            lambda x: x._replace(weights=x.weights._replace(codes=x.weights.codes[:, :10]))
        )(make.layer(None)),
    }
    assert {KERNELS.refuses(layer): layer for layer in reasons.values()} == reasons
    assert not any(
        KERNELS.refuses(make.layer(geometry)) for name, geometry in GEOMETRIES.items() if 'groups' not in name
    )


@needs_kernels
@pytest.mark.parametrize('name', [name for name in GEOMETRIES if 'groups' not in name])
@pytest.mark.parametrize('outputs', [1, 16, 33, 80])
def test_any_number_of_outputs_and_places(name, outputs, make):
    """Results that fill no vector are copied out of one, and patches are worked on in pieces."""
    geometry, layer = GEOMETRIES[name], make.layer(GEOMETRIES[name])
    every = torch.arange(outputs) % OUTPUTS
    layer = layer._replace(weights=LinearWeights(*(value[every] for value in layer.weights)))
    x = to_codes(make.normal(250, CHANNELS) if geometry is None else make.normal(3, CHANNELS, 13, 17), layer.grid)
    torch.testing.assert_close(KERNELS.layer(layer)(x), ExactLayer(layer)(x), rtol=1e-5, atol=1e-4)


@needs_kernels
def test_the_kernels_check_what_they_read(make):
    runner = KERNELS.layer(make.layer(GEOMETRIES['3x3']))
    for x in (torch.zeros(1, CHANNELS, 5, 5), torch.zeros(1, CHANNELS + 1, 5, 5, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r'codes: .* give uint8 of shape'):
            runner(x)
    with pytest.raises(ValueError, match='the kernel is larger than the map'):
        KERNELS.layer(make.layer(GEOMETRIES['3x3']._replace(padding=(0, 0))))(
            torch.zeros(1, CHANNELS, 2, 5, dtype=torch.uint8)
        )


@needs_onednn
def test_zero_points_of_weights_are_never_handed_to_operators_that_ignore_them(make):
    assert isinstance(BACKEND.layer(make.layer(None)), FusedLayer)
    assert isinstance(BACKEND.layer(make.layer(None, 'asymmetric')), FinishedLayer)
    grouped = make.layer(GEOMETRIES['3x3 in two groups'], 'asymmetric')
    assert BACKEND.refuses(grouped) == 'groups with asymmetric weights'
    assert isinstance(pick('auto', [grouped])[0].layer(grouped), ExactLayer)
    with pytest.raises(ValueError, match='engine="onednn" cannot run here: groups with asymmetric weights'):
        pick('onednn', [grouped])


@pytest.mark.parametrize('geometry', [None, GEOMETRIES['3x3']], ids=['linear', '3x3'])
@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('engine', ENGINES)
def test_no_proposals_are_no_results(engine, geometry, weights, make):
    layer = make.layer(geometry, weights)
    x = to_codes(make.input(geometry)[:0], layer.grid)
    assert pick(engine, [layer])[0].layer(layer)(x).shape == (0, OUTPUTS, *x.shape[2:])


@needs_onednn
@pytest.mark.parametrize('isa', ['AVX2', 'AVX512_CORE'])
def test_saturating_products_are_noticed(isa):
    """oneDNN without VNNI, which torch's own flag would not tell."""
    code = 'from mixaq_mmdet.deploy.backends import OnednnBackend as B; print(B.load())'
    environment = {**os.environ, 'ONEDNN_MAX_CPU_ISA': isa}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    assert "(None, 'int8 products of oneDNN saturate on this CPU, which has no VNNI')" in done.stdout


@needs_onednn
def test_the_operators_are_those_that_were_read():
    """They are not documented: another schema is another meaning."""
    arguments = {
        'qconv_prepack': 'weight w_scales x_scale x_zp stride padding dilation groups x_shape',
        'qconv2d_pointwise': 'qx x_scale x_zero_point qw w_scale w_zero_point bias stride padding dilation groups '
        'output_scale output_zero_point output_dtype attr scalars algorithm',
        'qlinear_prepack': 'weight x_shape',
        'qlinear_pointwise': 'qx x_scale x_zero_point qw w_scale w_zero_point bias output_scale output_zero_point '
        'output_dtype post_op_name post_op_args post_op_algorithm',
    }
    assert set(arguments) == set(OPERATORS)
    schemas = {name: getattr(torch.ops.onednn, name).default._schema for name in arguments}
    arguments['binary'] = (
        'qx x_scale x_zero_point qw w_scale w_zero_point other bias output_scale output_zero_point output_dtype '
        'other_scale other_zp binary_post_op binary_alpha unary_post_op unary_post_op_args unary_post_op_algorithm'
    )
    schemas['binary'] = torch.ops.onednn.qlinear_pointwise.binary._schema
    for name, expected in arguments.items():
        assert [argument.name for argument in schemas[name].arguments] == expected.split()


@needs_onednn
@pytest.mark.parametrize('weights', WEIGHTS)
def test_results_are_added_in_place(weights, make):
    layer, stream = make.layer(None, weights), make.normal(5, OUTPUTS)
    codes, before = to_codes(make.input(None), layer.grid), stream.clone()
    runner = BACKEND.layer(layer)
    runner.add(codes, stream)
    torch.testing.assert_close(stream, before + runner(codes))


@needs_onednn
@pytest.mark.parametrize('weights', WEIGHTS)
@pytest.mark.parametrize('bits', [None, 8, 4])
def test_gelu_is_the_exact_one(weights, bits, make):
    out_grid = None if bits is None else Grid(0.02 * 2 ** (8 - bits), 9, bits)
    layer, x = make.layer(None, weights, gelu=True, out_grid=out_grid), make.input(None)
    expected = F.gelu(simulated(x, layer)).float()
    for runner in (BACKEND.layer(layer), ExactLayer(layer)):
        found = runner(to_codes(x, layer.grid))
        if out_grid is None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        else:
            assert (found.int() - codes_in_torch(expected, out_grid).int()).abs().max() <= 1


@pytest.mark.parametrize('shape', [(2, 7, 5, 3), (11, 7), (0, 7), (2, 3, 7), (1, 1, 1, 1)])
@pytest.mark.parametrize('grid', [Grid(0.1, 8, 4), Grid(0.02, 130, 8)])
@pytest.mark.parametrize('offsets', [False, True])
def test_codes_are_torchs(shape, grid, offsets, make):
    x = make.normal(*shape)
    if offsets:
        grid = grid._replace(before=make.normal(shape[1] if len(shape) == 4 else shape[-1]))
    found = to_codes(x, grid)
    assert torch.equal(found, codes_in_torch(x, grid))
    assert len(shape) != 4 or found.is_contiguous(memory_format=torch.channels_last)
    # halves round to even
    ties = torch.arange(-8, 8).float().view(-1, 1) * grid.scale / 2
    assert torch.equal(to_codes(ties, grid._replace(before=None)), codes_in_torch(ties, grid._replace(before=None)))
