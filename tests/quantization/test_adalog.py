"""AdaLog: the adaptive base, the progressive search, the search by outputs, conversion, what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import build_method, quantizer_mode
from mixaq_mmdet.quantization.adaptive_log import (
    BASES,
    adaptive_errors,
    adaptive_levels,
    fake_adaptive_quantize,
    reference_fake_adaptive_quantize,
)
from mixaq_mmdet.quantization.coarse_to_fine import Progressive, ProgressiveRange
from mixaq_mmdet.quantization.methods.adalog import fit_scale_and_base
from mixaq_mmdet.quantization.observers import MinMaxRange, MSERange, Samples
from mixaq_mmdet.quantization.quantizers.adaptive import AdaptiveLogQuantizer
from mixaq_mmdet.quantization.quantizers.logarithmic import Log2Quantizer, LogSqrt2Quantizer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

QUICK = {'keep': 2, 'expansions': 1, 'rounds': 1, 'output_expansions': 0, 'rows': 16}


def power_law(count=4000):
    """Like attention probabilities: most of them small, the largest 1."""
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0)).clamp(min=1e-4)
    return ((1e-4 / uniform) ** 0.8).sort().values


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('base', [10, 18, 37, 137])
def test_the_grid_is_what_its_slow_statement_says(bits, base):
    x = torch.cat([torch.zeros(2), power_law(200) * 1.5])
    levels = adaptive_levels(base, bits)
    found = fake_adaptive_quantize(x, torch.tensor(0.9), torch.tensor(base), levels, bits)
    expected = reference_fake_adaptive_quantize(x, 0.9, base, bits)
    near = torch.isclose(found, expected, rtol=1e-5, atol=0)
    assert near.float().mean() > 0.98  # float32 puts values on a border to either side
    assert torch.equal(found[:2], torch.zeros(2))
    assert len(levels.unique()) <= 2**bits + 1


@pytest.mark.parametrize('bits', [3, 4])
def test_the_searched_base_beats_the_fixed_ones(bits):
    samples = Samples.exact(power_law(), None, 'attn')
    errors = {}
    for kind in (AdaptiveLogQuantizer, Log2Quantizer, LogSqrt2Quantizer):
        quantizer = kind(bits, role='attn')
        quantizer.fit(samples, MinMaxRange())
        errors[kind] = float(samples.squared_error(quantizer.values_of(samples)))
    assert errors[AdaptiveLogQuantizer] < 0.9 * min(errors[Log2Quantizer], errors[LogSqrt2Quantizer])


def test_the_base_is_that_of_an_exhaustive_search():
    samples = Samples.exact(power_law(), None, 'attn')
    quantizer = AdaptiveLogQuantizer(3, role='attn')
    quantizer.fit(samples, MinMaxRange())
    x, scale = samples.values[0], samples.high[0]
    errors = [
        float((fake_adaptive_quantize(x, scale, torch.tensor(b), adaptive_levels(b, 3), 3) - x).double().square().sum())
        for b in BASES
    ]
    assert int(quantizer.base) == BASES[errors.index(min(errors))]


def test_a_fitted_grid_leaves_those_of_others_alone():
    first, second = AdaptiveLogQuantizer(4, role='attn'), AdaptiveLogQuantizer(4, role='attn')
    first.set_grid(torch.tensor(1.0), torch.tensor(37))
    second.set_grid(torch.tensor(1.0), torch.tensor(18))
    assert torch.equal(first.levels, torch.tensor([*(2.0**-k for k in range(16)), 0.0]))
    assert float(second.levels[1]) == pytest.approx(2 ** (-18 / 37), abs=1 / 30)
    assert torch.equal(AdaptiveLogQuantizer(4).levels, second.levels)


def test_scale_and_base_are_searched_jointly():
    x = torch.nn.functional.gelu(torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 2).sort().values
    samples = Samples.exact(x, None, 'fc2_in')
    joint, by_range = (AdaptiveLogQuantizer(4, role='fc2_in') for _ in range(2))
    fit_scale_and_base(joint, samples, Progressive(keep=4, expansions=2))
    by_range.fit(samples, MinMaxRange())
    error, other = (float(samples.squared_error(q.values_of(samples))) for q in (joint, by_range))
    assert error <= other
    scales = joint.scale * torch.linspace(0.5, 1.5, 41)[:, None]
    grid = scales.repeat_interleave(len(BASES), 0), torch.tensor(BASES).repeat(41)[:, None]
    exhaustive = float(adaptive_errors(joint.shifted(samples), samples.counts, *grid, 4).min())
    assert error < 1.02 * exhaustive


def test_progressive_search_finds_what_an_exhaustive_one_does():
    """On a grid of its own that holds every candidate, row by row."""
    x = torch.stack([power_law(500), power_law(500) * 3 - 1])
    samples = Samples.exact(x, 0, 'x')
    quantizer = UniformQuantizer(3, per_channel=True, channels=2, axis=0)
    low, high = ProgressiveRange(3, Progressive(keep=8, expansions=3))(samples, quantizer.simulate)
    found = samples.squared_error(quantizer.simulate(samples, low, high))
    scales, zeros = torch.linspace(0.02, 0.6, 291), torch.arange(8)
    errors = [
        samples.squared_error(quantizer.simulate(samples, *((edge - z) * s * torch.ones(2) for edge in (0, 7))))
        for s in scales
        for z in zeros
    ]
    assert (found <= 1.001 * torch.stack(errors).min(0).values).all()
    mse = samples.squared_error(quantizer.simulate(samples, *MSERange()(samples, quantizer.simulate)))
    assert (found <= mse).all()


def calibrated(**options):
    model = backbone({'method': 'AdaLog', 'w_bits': 3, 'a_bits': 4, 'low_a_bits': 3, **QUICK, **options})
    calibrator = Calibrator(model, tick=lambda: ticks.append(1))
    ticks = []
    noise = calibrator.run(images(2))
    assert len(ticks) == calibrator.steps(2)
    return model, noise


@pytest.fixture(scope='module')
def adalog():
    """Read only."""
    return calibrated()


def test_every_branch_has_a_base_of_its_own(adalog):
    model, noise = adalog
    adaptive = [q for q in model.modules() if isinstance(q, AdaptiveLogQuantizer)]
    assert {(q.role, q.branch) for q in adaptive} == {(r, b) for r in ('attn', 'fc2_in') for b in ('high', 'low')}
    assert all(float(q.scale) == 1 for q in adaptive if q.role == 'attn')
    assert len({int(q.base) for q in adaptive}) > 2
    assert set(noise) >= {q.name for q in adaptive}


def test_the_search_by_outputs_lowers_their_error():
    """Of the first block: what lies behind it reads other inputs."""

    def error(model):
        block = model.stages[0].blocks[0]
        found = {}
        for side in ('quantize', 'float'):
            with torch.no_grad(), quantizer_mode(model, 'float'), quantizer_mode(block, side):
                stream = model.begin(images(1)[0])
                for step in model.steps():
                    stream = step(stream)
                    if step.kind == 'block':
                        break
            found[side] = stream.x
        return float((found['quantize'] - found['float']).square().sum())

    assert error(calibrated()[0]) < error(calibrated(rounds=0)[0])


def test_a_grid_by_override():
    overrides = [{'pattern': '*', 'roles': ['attn'], 'grid': 'AdaptiveLog'}]
    model = backbone({'method': 'MinMax', 'a_bits': 4, 'low_a_bits': 3, 'overrides': overrides})
    Calibrator(model).run(images(1))
    operands = model.stages[0].blocks[0].attn.w_msa.attention_value.operands
    assert isinstance(operands['attn'].low, AdaptiveLogQuantizer)
    assert not isinstance(model.stages[0].blocks[0].ffn.layers[1].input_quant.low, AdaptiveLogQuantizer)
    assert torch.isfinite(model(images(1)[0])[0]).all()


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({'grid': 'Adaptive'}, r"overrides\[0\]\.grid='Adaptive' is unknown; use one of \['"),
        ({'grid': 'Learned'}, r"grid='Learned' is unknown"),
        ({'grid': 'AdaptiveLog', 'roles': ['qkv_in']}, r"grid cannot act on \['qkv_in'\].*grid of roles that it fits"),
        ({'grid': 'LogSqrt2', 'roles': ['fc2_in']}, r"grid cannot act on \['fc2_in'\]"),
    ],
)
def test_grids_that_do_not_fit_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        backbone({'method': 'RepQ', 'overrides': [{'pattern': '*', **override}]})


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'keep': 0}, r'quant\.keep=0 must be a whole number of at least 1'),
        ({'expansions': -1}, r'quant\.expansions=-1 must be'),
        ({'rounds': 1.5}, r'quant\.rounds=1\.5 must be a whole number'),
        ({'rows': 0}, r'quant\.rows=0 must be'),
        ({'log_gelu': 'no'}, r"quant\.log_gelu='no' must be True or False"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        build_method({'method': 'AdaLog', **option})
