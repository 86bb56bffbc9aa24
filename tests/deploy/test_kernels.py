"""The C++ kernels against plain torch on random blocks, and against exact integers (codes: see test_codes.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mixaq_mmdet.deploy import kernels as package
from mixaq_mmdet.deploy.kernels import build
from mixaq_mmdet.deploy.layouts import BlockWeights, BranchGrids, Grid, LinearWeights, ProbabilityGrid
from mixaq_mmdet.deploy.torch_block import TorchBlock
from mixaq_mmdet.windows.assignment import Run, assign, tier_counts
from mixaq_mmdet.windows.geometry import window_grid

KERNELS, REASON = package.load()
needs_kernels = pytest.mark.skipif(KERNELS is None, reason=f'no integer kernels here: {REASON}')
LOG_SQRT2, LOG2 = ProbabilityGrid(2, 0.9, 0, 8), ProbabilityGrid(1, 1.0, 0, 8)
UNIFORM = ProbabilityGrid(0, 1 / 255, 0, 8)


def uniform_grid(low: float, high: float, bits: int) -> Grid:
    scale = (high - low) / (2**bits - 1)
    return Grid(scale, round(-low / scale), bits)


def branch_grids(bits: int, attn: ProbabilityGrid | None) -> BranchGrids:
    ranges = dict(qkv_in=(-3, 3.2), q=(-0.6, 0.5), k=(-3, 3), v=(-3, 3), proj_in=(-2, 2), fc1_in=(-3, 3), fc2_in=(0, 3))
    return BranchGrids(attn=attn, **{role: uniform_grid(*ends, bits) for role, ends in ranges.items()})


class Maker:
    """Random blocks and maps from one seed."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def layer(self, outputs: int, inputs: int, asymmetric: bool = True) -> LinearWeights:
        codes = torch.randint(-128, 128, (outputs, inputs), generator=self.generator).to(torch.int8)
        scale = inputs**-0.5 / 60 * (1 + torch.rand(outputs, generator=self.generator))
        zero_point = torch.randint(-20, 20, (outputs,), generator=self.generator).int() * asymmetric
        return LinearWeights(codes, scale, zero_point, 0.1 * self.normal(outputs))

    def norm(self, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 + 0.1 * self.normal(2, channels), 0.1 * self.normal(2, channels)

    def block(
        self, channels: int, heads: int, window: int, attn: ProbabilityGrid | None, low_bits: int, asymmetric: bool
    ) -> BlockWeights:
        def linear(outputs: int, inputs: int) -> LinearWeights:
            return self.layer(outputs * channels, inputs * channels, asymmetric)

        low_attn = attn if attn is None or attn.steps_per_octave == 0 else attn._replace(bits=low_bits)
        return BlockWeights(
            qkv=linear(3, 1),
            proj=linear(1, 1),
            fc1=linear(4, 1),
            fc2=linear(1, 4),
            norm1=self.norm(channels),
            norm2=self.norm(channels),
            bias=self.normal(4, heads, window**2, window**2),
            pad_qkv=0.3 * self.normal(3 * channels),
            grids=(branch_grids(8, attn), branch_grids(low_bits, low_attn)),
            num_heads=heads,
            scale=(channels // heads) ** -0.5,
        )

    def run(self, size: tuple[int, int], window: int, shift: int, low: float, prune: float, batch: int) -> Run:
        grid = window_grid(*size, window, shift)
        count = len(grid.rows)
        order = torch.stack([torch.randperm(count, generator=self.generator) for _ in range(batch)])
        return assign(order, tier_counts(count, low, prune), grid, batch).runs[0]


@pytest.fixture(params=['vectors', 'matrices'])
def make(request) -> Iterator[Maker]:
    """Every block and map runs with products on vectors (VNNI), and on matrices (AMX) where there are any."""
    before = KERNELS.on_matrices
    if KERNELS.use_matrices(request.param == 'matrices') != (request.param == 'matrices'):
        pytest.skip('this CPU, or its system, has no matrix products (AMX)')
    yield Maker()
    KERNELS.use_matrices(before)


CASES = {
    # channels, heads, window, (height, width), shift, low, prune, attn, low bits, asymmetric, tolerance
    'whole windows': (96, 3, 7, (14, 21), 0, 0.0, 0.0, LOG_SQRT2, 8, False, 0.01),
    'shifted and padded': (96, 3, 7, (15, 20), 3, 0.0, 0.0, LOG_SQRT2, 8, True, 0.01),
    'three tiers': (64, 4, 7, (15, 20), 3, 0.4, 0.2, LOG_SQRT2, 4, True, 0.02),
    'log2': (64, 2, 6, (13, 11), 3, 0.5, 0.0, LOG2, 6, True, 0.01),
    'uniform probabilities': (32, 1, 4, (9, 10), 2, 0.5, 0.1, UNIFORM, 8, False, 0.02),
    'float probabilities': (32, 2, 8, (17, 9), 4, 0.3, 0.0, None, 8, True, 0.02),
    'windows of 12': (64, 2, 12, (25, 38), 6, 0.4, 0.2, LOG_SQRT2, 8, True, 0.01),
    'windows of 9, uniform probabilities': (32, 2, 9, (18, 20), 4, 0.5, 0.0, UNIFORM, 8, False, 0.02),
    'all low, smaller than a window': (32, 1, 7, (4, 5), 0, 1.0, 0.0, LOG_SQRT2, 8, True, 0.01),
}


@needs_kernels
@pytest.mark.parametrize('case', CASES.values(), ids=CASES.keys())
def test_block_agrees_with_plain_torch(case, make):
    channels, heads, window, size, shift, low, prune, attn, low_bits, asymmetric, tolerance = case
    weights = make.block(channels, heads, window, attn, low_bits, asymmetric)
    run = make.run(size, window, shift, low, prune, batch=2)
    stream = make.normal(2 * size[0] * size[1], channels)
    expected, one, two = stream.clone(), stream.clone(), stream.clone()
    TorchBlock(weights).run(expected, run)
    package.IntegerBlock(KERNELS, weights).run(one, run, threads=1)
    package.IntegerBlock(KERNELS, weights).run(two, run, threads=2)
    assert torch.equal(one, two)
    # a code that rounds the other way moves its row by a step: few rows may differ visibly
    assert (one - expected).norm() <= tolerance * (expected - stream).norm()
    untouched = torch.ones(len(stream), dtype=torch.bool)
    untouched[run.rows] = False
    assert torch.equal(one[untouched], stream[untouched])


def learned(grids: BranchGrids, make: Maker, tokens: int, channels: int, heads: int) -> BranchGrids:
    """The same grids with steps and offsets of their own, as training leaves them."""
    found = {}
    for role, grid in grids._asdict().items():
        steps = grid.scale * (0.8 + 0.4 * torch.rand(tokens, generator=make.generator))
        found[role] = grid._replace(scale=1.0, steps=steps)
        if role != 'attn':
            width = {'fc2_in': 4 * channels, 'q': channels // heads, 'k': channels // heads, 'v': channels // heads}
            before, after = (grid.scale * make.normal(width.get(role, channels)) for _ in range(2))
            found[role] = found[role]._replace(before=before, after=after)
    return BranchGrids(**found)


@needs_kernels
@pytest.mark.parametrize('size', [(14, 21), (15, 20)])
@pytest.mark.parametrize(('channels', 'heads', 'window'), [(96, 3, 7), (32, 2, 8), (64, 2, 6), (32, 1, 12)])
def test_block_with_learned_grids_agrees_with_plain_torch(channels, heads, window, size, make):
    weights = make.block(channels, heads, window, UNIFORM, 4, False)
    low = weights.grids[1]._replace(attn=ProbabilityGrid(0, 1 / 15, 0, 4))
    grids = (learned(grid, make, window**2, channels, heads) for grid in (weights.grids[0], low))
    weights = weights._replace(grids=tuple(grids))
    run = make.run(size, window, window // 2, 0.4, 0.2, batch=2)
    stream = make.normal(2 * size[0] * size[1], channels)
    expected, one, two = stream.clone(), stream.clone(), stream.clone()
    TorchBlock(weights).run(expected, run)
    package.IntegerBlock(KERNELS, weights).run(one, run, threads=1)
    package.IntegerBlock(KERNELS, weights).run(two, run, threads=2)
    assert torch.equal(one, two)
    assert (one - expected).norm() <= 0.02 * (expected - stream).norm()


@needs_kernels
def test_runs_of_few_windows_give_what_one_run_gives(make):
    weights = make.block(32, 1, 7, LOG_SQRT2, 4, True)
    grid = window_grid(30, 20, 7, 3)
    order = torch.randperm(len(grid.rows), generator=make.generator)[None]
    counts = tier_counts(len(grid.rows), 0.4, 0.1)
    stream = make.normal(600, 32)
    block = package.IntegerBlock(KERNELS, weights)
    whole = block.run(stream.clone(), assign(order, counts, grid, 1).runs[0])
    cut = stream.clone()
    for run in assign(order, counts, grid, 1, windows_per_run=3).runs:
        block.run(cut, run)
    assert torch.equal(whole, cut)


@needs_kernels
def test_a_forked_process_does_not_wait_for_threads_that_it_lacks(make):
    block = package.IntegerBlock(KERNELS, make.block(32, 1, 4, LOG_SQRT2, 8, False))
    run, stream = make.run((20, 20), 4, 0, 0.0, 0.0, 1), make.normal(400, 32)
    expected = block.run(stream.clone(), run, threads=2)  # from here on there are threads that a fork loses
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(block.run(stream.clone(), run, threads=2), expected) else 1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail('the child hangs')
        time.sleep(0.01)
    assert ended[1] == 0


def integer_product(codes: torch.Tensor, grid: Grid, layer: LinearWeights) -> torch.Tensor:
    """The layer on codes, with exact integers."""
    steps = codes.long() - grid.zero_point
    weights = layer.codes.long() - layer.zero_point.long()[:, None]
    return ((steps @ weights.t()).double() * (layer.scale.double() * grid.scale) + layer.bias).float()


@needs_kernels
@pytest.mark.parametrize('size', [(8, 12), (7, 9), (1, 1)])
def test_embedding_has_the_integers_of_a_convolution(size, make):
    layer, grid = make.layer(48, 48), uniform_grid(-2.1, 2.6, 8)
    images = make.normal(2, 3, size[0] * 4 - 1, size[1] * 4)
    out, got_size = package.IntegerEmbedding(KERNELS, layer, grid, None, None).run(images)
    padded = F.pad(images, (0, 0, 0, 1))
    codes = (torch.round(padded / grid.scale) + grid.zero_point).clamp(0, 255)
    expected = integer_product(F.unfold(codes, 4, stride=4).transpose(1, 2), grid, layer)
    assert got_size == size
    assert torch.allclose(out, expected, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize('weights', ['symmetric', 'asymmetric', 'odd numbers of nine bits'])
@pytest.mark.parametrize(
    ('channels', 'columns'), [(3, 13), (3, 6), (24, 7), (24, 1), (3, 50), (6, 20), (7, 16), (11, 98)]
)
def test_sums_are_equal_integers(channels, columns, weights, make):
    layer = make.layer(48, 16 * channels, weights == 'asymmetric')
    layer = layer._replace(scale=torch.ones(48), bias=torch.zeros(48))
    if weights.startswith('odd'):
        layer = layer._replace(codes=2 * layer.codes.short() + 1)
    grid = Grid(1.0, 100, 8)
    images = (300 * make.normal(1, channels, 4, 4 * columns)).round()
    out, _ = package.IntegerEmbedding(KERNELS, layer, grid, None, None).run(images)
    codes = (images + 100).clamp(0, 255)
    assert torch.equal(out, integer_product(F.unfold(codes, 4, stride=4).transpose(1, 2), grid, layer))


@needs_kernels
@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 1)])
def test_merging_agrees_with_unfold_norm_and_product(size, make):
    channels, grid = 32, uniform_grid(-3, 3, 8)
    layer, x = make.layer(2 * channels, 4 * channels), make.normal(2, size[0] * size[1], channels)
    gamma, beta = (value[0] for value in make.norm(4 * channels))
    out, merged = package.IntegerMerging(KERNELS, layer, gamma, beta, grid).run(x, size)
    image = F.pad(x.transpose(1, 2).reshape(2, channels, *size), (0, size[1] % 2, 0, size[0] % 2))
    normed = F.layer_norm(F.unfold(image, 2, stride=2).transpose(1, 2), (4 * channels,), gamma, beta)
    codes = (torch.round(normed / grid.scale) + grid.zero_point).clamp(0, 255)
    expected = integer_product(codes, grid, layer)
    assert merged == (-(-size[0] // 2), -(-size[1] // 2))
    step = grid.scale * (layer.codes.int() - layer.zero_point[:, None]).abs().max(1).values * layer.scale
    assert ((out - expected).abs() <= step + 1e-4).all()
    assert (out - expected).abs().median() < 1e-4


@needs_kernels
@pytest.mark.parametrize('size', [(8, 8), (3, 5), (9, 13), (40, 52)])
def test_output_norm_gives_a_map(size, make):
    x, (gamma, beta) = make.normal(2, size[0] * size[1], 96), (value[0] for value in make.norm(96))
    expected = F.layer_norm(x, (96,), gamma, beta).transpose(1, 2).reshape(2, 96, *size)
    assert torch.allclose(package.output_norm(KERNELS, x, gamma, beta, size), expected, atol=1e-5)


@needs_kernels
def test_sizes_the_kernels_cannot_run_are_refused(make):
    with pytest.raises(ValueError, match='heads of 8 channels'):
        package.IntegerBlock(KERNELS, make.block(32, 4, 4, LOG_SQRT2, 8, False))
    assert package.unsupported(make.block(96, 3, 7, LOG_SQRT2, 8, False)) is None
    assert '169 tokens' in package.unsupported(make.block(96, 3, 13, LOG_SQRT2, 8, False))


@needs_kernels
def test_stream_of_another_width_is_refused(make):
    block = package.IntegerBlock(KERNELS, make.block(32, 1, 4, LOG_SQRT2, 8, False))
    with pytest.raises(ValueError, match=r'stream: \(16, 48\) float32 on cpu; give float32 of shape \(rows, 32\)'):
        block.run(make.normal(16, 48), make.run((4, 4), 4, 0, 0.0, 0.0, 1))


@pytest.fixture
def fresh_load():
    build.load.cache_clear()
    yield build.load
    build.load.cache_clear()


def test_missing_instructions_are_named(fresh_load, monkeypatch):
    monkeypatch.setattr(build, 'cpu_features', lambda: frozenset({'avx512f'}))
    loaded, reason = fresh_load()
    assert loaded is None
    assert reason == 'this CPU lacks avx2, fma'


def test_missing_compiler_is_named(fresh_load, monkeypatch):
    monkeypatch.setattr(build, 'cpu_features', lambda: frozenset(build.AVX512.needed))
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', '')
    loaded, reason = fresh_load()
    assert loaded is None
    assert 'no C++ compiler' in reason


def test_failing_compiler_leaves_one_line(fresh_load, monkeypatch, tmp_path):
    monkeypatch.setattr(build, 'cpu_features', lambda: frozenset(build.AVX512.needed))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('CXX', 'false')
    loaded, reason = fresh_load()
    assert loaded is None
    assert 'could not be built with false' in reason
    assert '\n' not in reason


def test_a_compiler_without_matrix_instructions_builds_the_rest(monkeypatch, tmp_path):
    monkeypatch.setattr(build, 'cpu_features', lambda: frozenset(build.AVX512.needed + build.MATRIX_FEATURES))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    asked = []

    def compile_unless_new(command: list[str], sources: Path, path: Path) -> None:
        asked.append('-mamx-int8' in command)
        if asked[-1]:
            raise subprocess.CalledProcessError(1, command, stderr='unrecognized command-line option')
        path.touch()

    monkeypatch.setattr(build, '_compile', compile_unless_new)
    assert build.build('true', build.AVX512).is_file()
    assert asked == [True, False]


def build_for(vectors: build.Vectors) -> package.Kernels:
    """The library as a CPU gets it that has what the vectors need, and nothing optional."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, 'cpu_features', lambda: frozenset(vectors.needed))
        return package.Kernels(build.build(os.environ.get('CXX', 'g++'), vectors))


@pytest.fixture(scope='module', params=['AVX-512 without bf16', 'AVX2'])
def simpler(request) -> package.Kernels:
    """The library of a CPU that has less than this one."""
    if not build.cpu_features().issuperset(build.AVX512.needed):
        pytest.skip('this CPU has no more than AVX2: its own library is the simplest one')
    return build_for(build.AVX2 if request.param == 'AVX2' else build.AVX512)


@needs_kernels
@pytest.mark.parametrize('name', CASES)
def test_every_build_computes_the_same(name, simpler):
    channels, heads, window, size, shift, low, prune, attn, low_bits, asymmetric, _ = CASES[name]
    maker = Maker()
    weights = maker.block(channels, heads, window, attn, low_bits, asymmetric)
    run = maker.run(size, window, shift, low, prune, 2)
    stream = maker.normal(2 * size[0] * size[1], channels)
    results = [package.IntegerBlock(built, weights).run(stream.clone(), run) for built in (KERNELS, simpler)]
    assert simpler.path != KERNELS.path or simpler.instructions == 'AVX-512 VNNI'
    assert (results[0] - results[1]).norm() <= 1e-3 * (results[0] - stream).norm()


@needs_kernels
@pytest.mark.parametrize('bits', [2, 4, 6, 8])
@pytest.mark.parametrize('largest', [1, 8, 32, 64, 128])
def test_avx2_never_cuts_a_sum(bits, largest):
    """Codes at their ends: each width takes the products whose 16-bit sums hold them, 0 to thousands of steps."""
    maker, grid = Maker(), Grid(1.0, 0, bits)
    signs = torch.randint(0, 2, (48, 4096), generator=maker.generator)
    signs[:8], signs[8:16] = 0, 1
    codes = torch.where(signs.bool(), -largest, min(largest, 127)).to(torch.int8)
    layer = LinearWeights(codes, torch.ones(48), torch.zeros(48, dtype=torch.int32), torch.zeros(48))
    images = torch.full((1, 256, 8, 40), 1000.0)  # 20 patches of 4096 inputs, all at the top
    images[..., 16:] = (1000 * maker.normal(1, 256, 8, 24)).round()
    built = KERNELS if KERNELS.instructions == 'AVX2' else build_for(build.AVX2)
    out, _ = package.IntegerEmbedding(built, layer, grid, None, None).run(images)
    tops = images.clamp(0, 2**bits - 1)
    assert torch.equal(out, integer_product(F.unfold(tops, 4, stride=4).transpose(1, 2), grid, layer))


@needs_kernels
def test_built_library_is_found_again():
    path = KERNELS.path
    before = path.stat().st_mtime_ns
    assert build.load()[0].path == path
    assert path.stat().st_mtime_ns == before
