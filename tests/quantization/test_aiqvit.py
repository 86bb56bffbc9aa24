"""AIQViT: compensation that starts as nothing, a search that repeats, a reconstruction that helps unseen images."""

import copy

import pytest
import torch
from first_block import FirstBlock
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.engine.calibration.summary import summarize
from mixaq_mmdet.models.backbone_cost import backbone_bops
from mixaq_mmdet.quantization import quantizer_mode
from mixaq_mmdet.quantization.compensation import LowRank
from mixaq_mmdet.quantization.methods import build_method
from mixaq_mmdet.quantization.quantizers.focusing import FocusingQuantizer
from mixaq_mmdet.quantization.reconstruction import LowRankReconstruction, LowRankSchedule

BITS = {'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}
SHORT = {'steps': 4, 'search_steps': 2}


def calibrated(number=3, low_ratios=0.5, **quant):
    model = backbone({'method': 'AIQViT', **BITS, **SHORT, **quant}, low_ratios=low_ratios)
    Calibrator(model).run(images(number))
    return model


def ranks(model):
    return {name: module.rank for name, module in model.named_modules() if isinstance(module, LowRank)}


@torch.no_grad()
def test_zero_initialised_compensation_is_the_base_method_exactly():
    base = backbone({'method': 'RepQ', **BITS}, low_ratios=0.5)
    Calibrator(base).run(images())
    model = calibrated(2, ranks=[4], focusing=False, lr=0.0)
    assert set(ranks(model).values()) == {4}
    assert any(module.down.any() for module in model.modules() if isinstance(module, LowRank))
    for a, b in zip(base(images()[0]), model(images()[0]), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope='module')
def searched():
    """A model whose ranks were searched for longer than usual; read only."""
    return calibrated(search_steps=8)


@pytest.fixture(scope='module')
def rank_two():
    """A model whose compensations all have rank 2; read only."""
    return calibrated(2, ranks=[2])


def test_same_seed_same_ranks_and_numbers(searched):
    first, again = searched, calibrated(search_steps=8)
    assert ranks(first) == ranks(again)
    assert len(set(ranks(first).values())) > 1
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    other = calibrated(2, ranks=[4], steps=1, seed=1)
    same = calibrated(2, ranks=[4], steps=1)
    name = 'stages.0.blocks.0.attn.w_msa.qkv.compensation.up'
    assert not torch.equal(same.state_dict()[name], other.state_dict()[name])


def test_a_price_on_ranks_takes_the_smallest_and_ranks_fit_the_layer():
    model = calibrated(2, ranks=[0, 2, 100], rank_penalty=1e3, rank_lr=1.0)
    assert set(ranks(model).values()) == {0}
    qkv = model.stages[0].blocks[0].attn.w_msa.qkv.compensation
    assert qkv.candidates == [0, 2, 8]
    assert set(ranks(calibrated(1, ranks=[100], steps=1)).values()) == {8, 16}


def test_reconstruction_lowers_the_error_of_both_branches_on_held_out_images():
    model = backbone({'method': 'AIQViT', **BITS, 'ranks': [4], 'steps': 100, 'lr': 5e-3})
    method, block = model.quant_method, model.stages[0].blocks[0]
    train, held_out = FirstBlock(model, images(4)), FirstBlock(model, images(2, seed=11))
    before_fit = method._learns
    method._learns = lambda block: False
    method.calibrate(block, train.inputs)
    before = held_out.errors(block)
    weights = {name: value.clone() for name, value in block.named_parameters()}
    method._learns = before_fit
    reconstruction = LowRankReconstruction(block, train.inputs, method._schedule())
    reconstruction.run()
    for index in range(4):  # it trained towards the float block, weights included
        with torch.no_grad(), quantizer_mode(block, 'float'):
            expected = train.inputs.outputs(block, index)
        for target, output in zip(reconstruction.targets.stores, expected, strict=True):
            assert torch.equal(target[index], output)
    after = held_out.errors(block)
    assert (after < before).all()
    assert after[1] < 0.9 * before[1]  # two bits leave the low branch more to win
    for name, value in block.named_parameters():
        assert torch.equal(value, weights[name]), name
        assert value.requires_grad


def test_intervals_are_learned_per_branch():
    start = calibrated(2, steps=0)
    model = calibrated(2, ranks=[], steps=10)
    for name, quantizer in model.named_modules():
        if isinstance(quantizer, FocusingQuantizer):
            assert float(quantizer.lower) != float(start.get_submodule(name).lower)
    attn = model.stages[0].blocks[0].attn.w_msa.attention_value.operands['attn']
    assert float(attn.high.upper) != float(attn.low.upper)


def test_curriculum_starts_with_the_easiest_and_ends_with_all():
    plan = build_method({'method': 'AIQViT', 'steps': 100})._schedule()
    pools = [LowRankReconstruction._pool(_With(plan), step, 32) for step in range(100)]
    assert pools[0] == 8
    assert pools[50:] == [32] * 50
    assert pools == sorted(pools)
    flat = build_method({'method': 'AIQViT', 'steps': 100, 'curriculum': False})._schedule()
    assert LowRankReconstruction._pool(_With(flat), 0, 32) == 32


class _With:
    def __init__(self, schedule: LowRankSchedule):
        self.schedule = schedule


def test_nothing_trains_outside_and_nothing_stays_attached(searched):
    model = searched
    for module in model.modules():
        if isinstance(module, LowRank):
            assert module.mixture is None
            assert not module.down.requires_grad
            assert not module.up.requires_grad
    trained = {name for name, _ in model.named_parameters()}
    assert not any('compensation' in name or 'attn.high' in name for name in trained)


def test_float_mode_is_the_float_model_and_a_float_file_forgets_the_factors(searched):
    model = copy.deepcopy(searched)
    with torch.no_grad(), quantizer_mode(model, 'float'):
        for a, b in zip(backbone()(images()[0]), model(images()[0]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    model.load_state_dict({k: v for k, v in backbone().state_dict().items() if '_low' not in k}, strict=True)
    assert set(ranks(model).values()) == {0}


def test_cost_counts_the_compensation(rank_two):
    model = rank_two
    plain = backbone({'method': 'RepQ', **BITS}, low_ratios=0.5)
    added = backbone_bops(model, (64, 64)).macs() - backbone_bops(plain, (64, 64)).macs()
    expected = 0
    for block, tokens in ((model.stages[0].blocks[0], 256), (model.stages[0].blocks[1], 256)):
        for layer in (block.attn.w_msa.qkv, block.attn.w_msa.proj, block.ffn.layers[0][0], block.ffn.layers[1]):
            expected += tokens * layer.compensation.parameters_added
    last = model.stages[1].blocks[0]
    for layer in (last.attn.w_msa.qkv, last.attn.w_msa.proj, last.ffn.layers[0][0], last.ffn.layers[1]):
        expected += 64 * layer.compensation.parameters_added
    expected += 64 * model.stages[0].downsample.reduction.compensation.parameters_added
    assert added == expected
    cost = backbone_bops(model, (64, 64))
    down = next(layer for layer in cost.layers if layer.name == 'stages.0.blocks.0.ffn.layers.1.compensation')
    up = next(layer for layer in cost.layers if layer.name == 'stages.0.blocks.0.ffn.layers.1.compensation.up')
    assert (cost.bits(down).weight, cost.bits(down).high, cost.bits(down).low) == (32, 4, 2)
    assert (cost.bits(up).weight, cost.bits(up).high) == (32, 32)


def test_table_has_a_line_per_compensation(rank_two):
    lines = [line for line in summarize(rank_two, {}) if line.quantizer == 'LowRank']
    assert len(lines) == 13
    assert (lines[0].layer, lines[0].role) == ('stages.0.blocks.0.attn.w_msa.qkv', 'compensation')
    assert lines[0].range == 'rank 2: 64 parameters, as many MACs per token'


def test_progress_ends_at_the_announced_number_of_steps():
    steps = []
    model = backbone({'method': 'AIQViT', **BITS, **SHORT})
    calibrator = Calibrator(model, tick=lambda: steps.append(1))
    calibrator.run(images(1))
    assert len(steps) == calibrator.steps(1)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'ranks': 4}, r'quant\.ranks=4 must be a list of whole numbers'),
        ({'ranks': [-1]}, r'quant\.ranks=\[-1\] must be a list of whole numbers'),
        ({'steps': -1}, r'quant\.steps=-1 must be a whole number of at least 0'),
        ({'curriculum_start': 0}, r'quant\.curriculum_start=0 must lie in \(0, 1\]'),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        build_method({'method': 'AIQViT', **option})


def test_divergence_names_the_layer():
    with pytest.raises(ValueError, match=r'reconstruction of stages\.0\.blocks\.0.* diverged; lower quant\.lr'):
        calibrated(ranks=[4], steps=20, lr=1e30)
