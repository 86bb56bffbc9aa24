"""Reconstruction by rounding and scales: what it is trained towards, what its losses are, what stays behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from first_block import FirstBlock
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import build_method, quantizer_mode
from mixaq_mmdet.quantization.functional import fake_quantize
from mixaq_mmdet.quantization.prepare import quant_layer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer
from mixaq_mmdet.quantization.reconstruction import (
    GlobalAndLocal,
    LowRankFisher,
    MeanSquaredError,
    PerturbationHessian,
    WeightReconstruction,
    WeightSchedule,
)
from mixaq_mmdet.quantization.reconstruction.targets import FloatModelTargets, Pair

BITS = {'w_bits': 3, 'a_bits': 4, 'low_a_bits': 3}
UNTRAINED = {'method': 'FIMAQ', **BITS, 'steps': 0}
PLAN = WeightSchedule(
    steps=30, rounding='StraightThrough', lr=4e-3, scale_lr=2e-3, rounding_price=0.01, drop=0.5, seed=0
)


class Part:
    """Block inputs of some of the images."""

    def __init__(self, inputs, images):
        self.inputs, self.images = inputs, images
        for name in ('store', 'average', 'tick'):
            setattr(self, name, getattr(inputs, name))

    def __len__(self):
        return len(self.images)

    def outputs(self, block, index, mix=None):
        return self.inputs.outputs(block, self.images[index], mix)

    def worked(self, index):
        return self.inputs.worked(self.images[index])

    def output_gradients(self, index, outputs):
        return self.inputs.output_gradients(self.images[index], outputs)


@pytest.fixture
def first():
    """A block with RepQ's ranges and fold, and its inputs for images to train on and others."""
    model = backbone(UNTRAINED)
    block = model.stages[0].blocks[0]
    inputs = FirstBlock(model, images(6)).inputs
    model.quant_method.calibrate(block, inputs)
    return block, Part(inputs, range(4)), Part(inputs, range(4, 6))


def targets_of(block, inputs, drop=0.5):
    targets = FloatModelTargets(block, inputs, drop, seed=0)
    targets.store()
    return targets


@torch.no_grad()
def errors(targets):
    """(branches,) mean squared error of the block's output."""
    pairs = [targets.pairs(index) for index in range(len(targets.inputs))]
    return torch.stack([torch.stack([(a - b).square().mean() for a, b in image]) for image in pairs]).mean(0)


@pytest.mark.parametrize(
    'loss',
    [MeanSquaredError(), LowRankFisher(3), PerturbationHessian(1e-3), GlobalAndLocal()],
    ids=['MSE', 'FIMA-Q', 'APHQ', 'GLF-Q'],
)
def test_the_error_falls_in_both_branches_on_held_out_images(first, loss):
    block, train, held_out = first
    with torch.no_grad():
        unseen = targets_of(block, held_out)
    before = errors(unseen)
    WeightReconstruction(block, train, loss, PLAN).run()
    after = errors(unseen)
    assert (after < 0.9 * before).all()
    assert all(parameter.requires_grad for parameter in block.parameters())
    with torch.no_grad():
        for path, layer in block.named_modules():
            if hasattr(layer, 'weight_quant'):
                assert torch.equal(layer.quantized_weight(), layer.weight), path
                assert not layer.weight_quant.scale.requires_grad


class OneLayer:
    """A Linear layer as a block, and inputs for it that are the same in float."""

    def __init__(self):
        method = build_method(UNTRAINED)
        path = 'stages.0.blocks.0.ffn.layers.1'
        generator = torch.Generator().manual_seed(0)
        linear = torch.nn.Linear(12, 6)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(6, 12, generator=generator))
        self.block = quant_layer(linear, path, method.roles(path)).eval()
        method.fit_weights(self.block)
        for quantizer in self.block.input_quant.branches().values():
            quantizer.set_range(torch.tensor(-3.0), torch.tensor(3.0))
        mixed = torch.randn(12, 12, generator=generator)  # rounding to nearest is not best where inputs correlate
        self.images = [torch.randn(1, 64, 12, generator=generator) @ mixed / 3 for _ in range(4)]
        for name in ('store', 'tick'):
            setattr(self, name, getattr(Quadratic, name).__get__(self))

    def __len__(self):
        return len(self.images)

    def outputs(self, block, index, mix=None):
        return [block(self.images[index])]

    def worked(self, index):
        return [None]

    def average(self, tensors):
        pass


def test_adaround_ends_hard_and_what_is_kept_is_what_ran():
    inputs = OneLayer()
    layer, quantizer = inputs.block, inputs.block.weight_quant
    with torch.no_grad():
        before = errors(targets_of(layer, inputs))
        nearest = layer.quantized_weight()
        down = (layer.weight / quantizer.scale[:, None]).floor() * quantizer.scale[:, None]
    plan = replace(PLAN, steps=500, rounding='AdaRound', lr=0.04, rounding_price=1.0, scale_lr=0)
    reconstruction = WeightReconstruction(layer, inputs, MeanSquaredError(), plan)
    (rounding,) = reconstruction.roundings
    share = rounding.share_up()
    assert float(((share > 0.1) & (share < 0.9)).float().mean()) > 0.7
    targets = reconstruction.targets
    reconstruction.run()
    share = rounding.share_up()
    assert ((share == 0) | (share == 1)).all()
    assert torch.equal(rounding.weight(), layer.weight)
    assert torch.equal(layer.quantized_weight(), layer.weight)
    steps = (layer.weight - down) / quantizer.scale[:, None]
    in_range = steps.abs() < 1.5
    assert in_range.float().mean() > 0.9
    torch.testing.assert_close(steps[in_range], share[in_range], rtol=0, atol=1e-4)
    assert not torch.equal(layer.weight, nearest)
    assert errors(targets) < 0.9 * before


def test_targets_are_the_float_models_even_behind_blocks_whose_weights_changed():
    quant = {'method': 'APHQ', **BITS, 'budget': 'small', 'steps': 2, 'lr': 0.1}
    model = backbone(quant)
    last = model.stages[1].blocks[0]
    inputs = FirstBlock(model, images(2), last).inputs
    changed, float_model = model.stages[0].blocks[0], backbone()
    assert not torch.equal(changed.ffn.layers[1].weight, float_model.stages[0].blocks[0].ffn.layers[1].weight)
    seen = []
    float_model.stages[1].blocks[0].register_forward_hook(lambda block, given, output: seen.append((given[0], output)))
    with torch.no_grad():
        float_model(images(2)[1])
        targets = targets_of(last, inputs)
        with quantizer_mode(last, 'float'):  # nothing of it is calibrated
            inputs.outputs(last, 1, lambda quantized, from_float: seen.append((quantized, from_float)) or quantized)
    (entering, leaving), (quantized, from_float) = seen
    torch.testing.assert_close(from_float, entering, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(quantized, entering, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(targets.stores[0][1], leaving, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_inputs_are_mixed_in_training_only_and_low_windows_alone_count_in_the_low_branch(first):
    block, train, _ = first
    plain = targets_of(block, train, drop=0.0).pairs(0, training=True)
    every = targets_of(block, train, drop=1.0)
    half = targets_of(block, train)
    high, low = half.pairs(0)
    assert torch.equal(high.output, plain[0].output)
    assert torch.equal(every.pairs(0)[0].output, high.output)
    mixed = half.pairs(0, training=True)[0].output
    assert not torch.equal(mixed, high.output)
    assert not torch.equal(mixed, every.pairs(0, training=True)[0].output)
    same = (low.output == low.target).all(-1).float().mean()
    assert 0.3 < same < 0.8  # the windows that the low branch leaves out


def test_a_fisher_matrix_of_full_rank_is_the_dense_one():
    """Gradients g = F e of as many errors as channels: B G makes of them F^2, the published form's limit."""
    generator = torch.Generator().manual_seed(0)
    root = torch.rand(4, 4, generator=generator, dtype=torch.float64)
    fisher = root @ root.t()
    loss = LowRankFisher(4)
    for error in torch.rand(4, 4, generator=generator, dtype=torch.float64) + torch.eye(4):
        loss.add((fisher @ error)[None], error[None])
    output, other, target = torch.rand(3, 1, 7, 4, generator=generator, dtype=torch.float64)

    def dense(output):
        error = (output - target).abs()[0]
        return torch.stack(
            [(error @ fisher @ fisher @ error.t()).diagonal().mean(), (error.square() * diagonal).mean()]
        )

    diagonal = torch.stack(loss.gradients).mean(0)[0]
    found, expected = torch.stack(loss.terms(Pair(output, target), 0, 0)), dense(output)
    units = torch.stack(loss.terms(Pair(other, target), 0, 0)) / dense(other)
    torch.testing.assert_close(found / units, expected, rtol=1e-5, atol=0)


def test_rows_of_the_fisher_matrix_are_added_as_training_goes_on(first):
    block, train, _ = first
    loss = LowRankFisher(3)
    WeightReconstruction(block, train, loss, replace(PLAN, steps=6)).run()
    assert loss.renewals(6) == [0, 2, 4]
    assert [row.shape for row in loss.errors] == [(2, 8)] * 3
    assert not torch.equal(loss.errors[0], loss.errors[2])


class Quadratic:
    """Block inputs whose whole-model loss is z^T H z / 2 by tokens."""

    def __init__(self, hessian):
        self.hessian = hessian

    def __len__(self):
        return 1

    def store(self):
        return []

    def tick(self):
        pass

    def output_gradients(self, index, outputs):
        return [output @ self.hessian for output in outputs]


def test_the_perturbation_finds_the_row_sums_of_the_hessian():
    hessian = torch.tensor([[3.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)
    target, output = torch.randn(2, 1, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = PerturbationHessian(1e-3)

    class Stored:
        stores = ([target],)

    loss.renew(Stored(), Quadratic(hessian))
    (term,) = loss.terms(Pair(output, target), 0, 0)
    weights = torch.tensor([2.0, 0.5]) / 1.25
    torch.testing.assert_close(term, ((output - target).square() * weights).mean(), rtol=1e-6, atol=0)


def test_the_global_term_has_the_whole_models_gradient_and_value():
    hessian = torch.tensor([[3.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)
    output = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    loss = GlobalAndLocal()
    loss.renew(None, Quadratic(hessian))
    through, local = loss.terms(Pair(output, torch.zeros_like(output)), 0, 0)
    expected = ((output @ hessian) * output).sum() / 2
    torch.testing.assert_close(through, expected)
    (found,), (wanted,) = torch.autograd.grad(through, output), torch.autograd.grad(expected, output)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(local, output.square().mean())


def test_the_scale_of_a_uniform_grid_learns_only_where_it_is_asked_to():
    quantizer = UniformQuantizer(4)
    quantizer.set_range(torch.tensor(-0.7), torch.tensor(1.1))
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    plain = quantizer(x)
    quantizer.scale.requires_grad_(True)
    learning = quantizer(x)
    assert torch.equal(plain, learning)
    assert torch.equal(learning, fake_quantize(x, quantizer.scale.detach(), quantizer.zero_point, 4))
    (slope,) = torch.autograd.grad(learning.sum(), quantizer.scale)
    steps = x.detach() / quantizer.scale.detach()
    low, high = -float(quantizer.zero_point), 15 - float(quantizer.zero_point)
    inside = (steps >= low) & (steps <= high)
    expected = torch.where(inside, steps.round() - steps, steps.clamp(low, high)).sum()
    torch.testing.assert_close(slope, expected)
    assert UniformQuantizer(4, channels=3, per_channel=True).learnable() == []


@pytest.mark.parametrize('method', ['FIMAQ', 'APHQ', 'GLFQ'])
def test_progress_ends_at_the_announced_number_of_steps(method):
    ticks = []
    calibrator = Calibrator(backbone({'method': method, **BITS, 'steps': 2}), tick=lambda: ticks.append(1))
    calibrator.run(images(2))
    assert len(ticks) == calibrator.steps(2)


def test_heads_are_repqs():
    """There is no block to reconstruct: layers in groups are calibrated alone."""
    group = torch.nn.ModuleList([torch.nn.Conv2d(3, 3, 1)])
    method = build_method({'method': 'FIMAQ'})
    roles = method.roles('neck.conv')
    group[0] = quant_layer(group[0], 'neck.conv', roles)
    assert method.calibration_steps(group, 5) == build_method({'method': 'RepQ'}).calibration_steps(group, 5)


def test_a_second_calibration_is_refused():
    model = backbone({'method': 'APHQ', **BITS, 'steps': 1})
    Calibrator(model).run(images(1))
    with pytest.raises(ValueError, match=r'APHQ has calibrated patch_embed.* already.*load the float checkpoint'):
        Calibrator(model).run(images(1))


def test_options_that_are_given_win_over_the_budget():
    published, small = (build_method({'method': 'FIMAQ', **given}) for given in ({}, {'budget': 'small', 'steps': 7}))
    assert (published.steps, published.rounding, published.lr, published.scale_lr) == (20000, 'AdaRound', 1e-3, 4e-5)
    assert (small.steps, small.rounding, small.lr, small.scale_lr) == (7, 'StraightThrough', 2e-5, 2e-4)
    assert build_method({'method': 'GLFQ'}).rounding == 'StraightThrough'


@pytest.mark.parametrize(
    ('quant', 'message'),
    [
        (
            {'method': 'FIMAQ', 'budget': 'tiny'},
            r"quant\.budget='tiny' is unknown; use one of \['published', 'small'\]",
        ),
        ({'method': 'APHQ', 'rounding': 'up'}, r"quant\.rounding='up' is unknown; use one of \['AdaRound', 'Straight"),
        ({'method': 'FIMAQ', 'rows': 0}, r'quant\.rows=0 must be a whole number of at least 1'),
        ({'method': 'APHQ', 'perturbation': 0}, r'quant\.perturbation=0 must'),
        ({'method': 'APHQ', 'drop': 2}, r'quant\.drop=2 must lie in \[0, 1\]'),
        ({'method': 'APHQ', 'steps': -1}, r'quant\.steps=-1 must be a whole number'),
    ],
)
def test_bad_options(quant, message):
    with pytest.raises(ValueError, match=message):
        build_method(quant)
