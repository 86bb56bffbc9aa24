"""What each tier runs as: the decision, bf16 high windows beside integer low ones, and what the file tells of bits."""

from __future__ import annotations

import pytest
import tiny_backbone
import torch
from integer_twin import integer, relative_error, simulated

from mixaq_mmdet.analysis.latency import measure
from mixaq_mmdet.deploy import plan as plans
from mixaq_mmdet.deploy.backends import KernelsBackend, OnednnBackend
from mixaq_mmdet.deploy.bf16_block import TwoEngineBlock
from mixaq_mmdet.deploy.torch_block import TorchBlock
from mixaq_mmdet.models.backbone_cost import backbone_bops
from mixaq_mmdet.quantization.layers import BranchQuantizers
from mixaq_mmdet.quantization.quantizers.base import quantizer_mode
from mixaq_mmdet.windows.assignment import assign, cut_run, tier_counts
from mixaq_mmdet.windows.geometry import window_grid


@pytest.fixture(scope='module')
def model():
    return simulated('RepQ', w_bits=4, low_a_bits=4, low_ratios=0.4, prune_ratios=0.3)


@pytest.fixture
def with_bf16(monkeypatch):
    monkeypatch.setattr(plans, 'has_bf16', lambda: True)


def test_integer_tiers_are_one_line(model):
    line = integer(model).plan.line
    assert line.startswith('high windows A8 and low windows A4 run as exact integers in plain torch, because engine=')
    assert line.endswith('pruned windows are skipped')


def test_bf16_tier_is_one_line(model, with_bf16):
    plan = integer(model, high='bf16').plan
    assert (plan.high, plan.engine) == ('bf16', 'torch')
    assert plan.line.startswith('high windows run as bf16, low windows A4 as exact integers in plain torch')
    assert plan.line.endswith('pruned windows are skipped')


def test_bf16_without_the_instructions_is_int8_and_says_so(model, monkeypatch):
    monkeypatch.setattr(plans, 'has_bf16', lambda: False)
    plan = integer(model, high='bf16').plan
    assert plan.high == 'int8'
    assert plan.line.endswith('this CPU has no bf16 products')


def test_what_the_kernels_cannot_run_another_engine_runs(monkeypatch):
    model = simulated('MinMax', embed_dims=8)  # heads of eight channels
    monkeypatch.setattr(KernelsBackend, 'load', lambda: (KernelsBackend(object()), ''))
    for able, engine in ((OnednnBackend(), 'onednn'), (None, 'torch')):
        monkeypatch.setattr(OnednnBackend, 'load', lambda able=able: (able, 'products saturate'))
        plan = integer(model, engine='auto', embed_dims=8).plan
        assert plan.engine == engine
        assert 'because 8 channels are no multiple of 16' in plan.line
    with pytest.raises(ValueError, match=r'engine="kernels" cannot run here: 8 channels .*; use engine="auto"'):
        integer(model, engine='kernels', embed_dims=8)


@pytest.mark.parametrize('option', [{'engine': 'fpga'}, {'high': 'float8'}])
def test_unknown_names_are_refused(model, option):
    with pytest.raises(ValueError, match=f'{next(iter(option))}=.* is unknown; use one of'):
        integer(model, **option)


@pytest.mark.parametrize('method', ['MinMax', 'RepQ', 'OFQ'])
def test_bf16_windows_are_those_of_the_model_without_high_activation_quantizers(method, with_bf16):
    model = simulated(method, low_ratios=0.4, prune_ratios=0.2)
    x = torch.cat(tiny_backbone.images(2))
    # layers outside the blocks have one branch, and stay as they are
    branches = [m for m in model.modules() if isinstance(m, BranchQuantizers) and m.low is not None]
    with torch.no_grad(), quantizer_mode([branch.high for branch in branches], 'float'):
        expected = model(x)
    assert relative_error(expected, integer(model, high='bf16')(x)) < 2e-2
    assert relative_error(expected, integer(model)(x)) != relative_error(expected, integer(model, high='bf16')(x))


@pytest.mark.parametrize('size', [(16, 12), (13, 17)])
def test_two_engines_on_their_windows_are_one_on_all(model, size):
    weights = integer(model).stages[0].blocks[1].engine.weights
    grid = window_grid(*size, 4, 2)
    order = torch.randperm(len(grid.rows), generator=torch.Generator().manual_seed(0)).expand(2, -1)
    run = assign(order, tier_counts(len(grid.rows), 0.4, 0.2), grid, 2).runs[0]
    whole = torch.randn(2 * size[0] * size[1], 32, generator=torch.Generator().manual_seed(1))
    apart, pieces = whole.clone(), whole.clone()
    engine = TorchBlock(weights)
    engine.run(whole, run)
    TwoEngineBlock(engine, engine, 16).run(apart, run)
    for part in cut_run(run, [*range(0, run.windows, 3), run.windows], 16):
        engine.run(pieces, part)
    torch.testing.assert_close(apart, whole)
    torch.testing.assert_close(pieces, whole)


@pytest.mark.parametrize('method', ['RepQ', 'OFQ'])
def test_bit_operations_are_those_of_the_simulated_backbone(method, with_bf16):
    model = simulated(method, w_bits=4, a_bits=8, low_a_bits=4, low_ratios=0.5)
    expected, found = (backbone_bops(backbone, (64, 96)) for backbone in (model, integer(model)))
    assert found.bit_operations('paper') == expected.bit_operations('paper')
    assert found.mean_activation_bits() == expected.mean_activation_bits()
    assert backbone_bops(integer(model, high='bf16'), (64, 96)).mean_activation_bits() > found.mean_activation_bits()


def test_the_integer_path_is_measured_piece_by_piece(model):
    table = measure(integer(model), (64, 64), rounds=1, clock='cpu')
    assert table.path == 'integer (torch, high windows int8)'
    assert {entry.piece for entry in table.entries} == {'regular', 'shifted', 'rank', 'rest'}
    assert table.predict([0.4, 0.4], [0.3, 0.3]) > 0
