"""Learned steps and offsets: formula, gradients against finite differences, layouts, first values; StatsQ."""

import copy

import pytest
import torch

from mixaq_mmdet.quantization.learned_grid import (
    Parameters,
    Part,
    learned_fake_quantize,
    learned_linear,
    reference_learned_fake_quantize,
)
from mixaq_mmdet.quantization.observers import MinMaxRange, Samples
from mixaq_mmdet.quantization.quantizers.learned import LearnedQuantizer
from mixaq_mmdet.quantization.quantizers.statistic import StatisticQuantizer, statistic_values

TOKENS, CHANNELS = 4, 6


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quantizer(bits=3, **options):
    options = {'offsets': True, 'per_token': True, 'tokens': TOKENS, 'channels': CHANNELS, **options}
    module = LearnedQuantizer(bits, name='fc1_in.high', **options).double()
    with torch.no_grad():
        module.step.copy_(0.4 + 0.1 * torch.rand_like(module.step))
        if module.before is not None:
            module.before.copy_(0.3 * normal(CHANNELS, seed=1))
            module.after.copy_(0.3 * normal(CHANNELS, seed=2))
    module.mark_calibrated()
    return module


@pytest.mark.parametrize(('lowest', 'highest'), [(-4, 3), (0, 7)])
def test_values_equal_the_slow_reference(lowest, highest):
    x = normal(50, 3) * 2
    group = Parameters(torch.tensor(0.7).double(), torch.full((1, 1), 0.2).double(), torch.full((1, 1), -0.1).double())
    out = learned_fake_quantize(x, [Part(0, 50, lowest, highest, 1.0)], [group])
    torch.testing.assert_close(out, reference_learned_fake_quantize(x, 0.7, 0.2, -0.1, lowest, highest))


def central_difference(f, parameter, width=1e-6):
    gradient = torch.zeros_like(parameter)
    for index in range(parameter.numel()):
        ends = []
        for sign in (1, -1):
            moved = parameter.clone()
            moved.view(-1)[index] += sign * width
            ends.append(f(moved))
        gradient.view(-1)[index] = (ends[0] - ends[1]) / (2 * width)
    return gradient


@pytest.mark.parametrize('unsigned', [False, True])
@pytest.mark.parametrize(('shape', 'step_shape'), [((5, TOKENS, CHANNELS), (1, TOKENS, 1)), ((7, CHANNELS), (7, 1))])
def test_gradients_equal_finite_differences_with_the_rounding_error_held(unsigned, shape, step_shape, monkeypatch):
    """Straight-through: the derivative of s (clip(u) + e) + b2, where e = round(clip(u)) - clip(u) stays as it is."""
    monkeypatch.setattr('mixaq_mmdet.quantization.learned_grid.CHUNK_VALUES', 2 * TOKENS * CHANNELS)
    lowest, highest = (0, 7) if unsigned else (-4, 3)
    x, upstream = normal(*shape) * 1.5, normal(*shape, seed=3)
    step = 0.4 + 0.2 * torch.rand(step_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    before, after = (0.3 * normal(*[1] * (len(shape) - 1), CHANNELS, seed=seed) for seed in (1, 2))
    clipped = ((x + before) / step).clamp(lowest, highest)
    error = clipped.round() - clipped
    inputs = [x, step, before, after]

    def smooth(position):
        def value(moved):
            x, step, before, after = [*inputs[:position], moved, *inputs[position + 1 :]]
            out = step * (((x + before) / step).clamp(lowest, highest) + error) + after
            return (out * upstream).sum()

        return value

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = learned_fake_quantize(
        leaves[0], [Part(0, shape[0], lowest, highest, gradient_scale=0.25)], [Parameters(*leaves[1:])]
    )
    (out * upstream).sum().backward()
    for position, (leaf, scale) in enumerate(zip(leaves, (1, 0.25, 1, 1), strict=True)):
        torch.testing.assert_close(
            leaf.grad, scale * central_difference(smooth(position), inputs[position]), atol=1e-6, rtol=1e-5
        )


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def test_tokens_in_any_layout_meet_the_same_steps():
    x = normal(5, TOKENS, CHANNELS)
    places = torch.tensor([0, 2, 3, 5, 6, 7, 9, 12, 13, 15, 18])
    in_windows = quantizer()
    in_tokens = copy.deepcopy(in_windows)
    out = in_windows(x).flatten(0, 1)[places]
    by_token = in_tokens(x.flatten(0, 1)[places], slots=places)
    assert torch.equal(out, by_token)
    weights = normal(len(places), CHANNELS, seed=8)
    (out * weights).sum().backward()
    (by_token * weights).sum().backward()
    for name, grad in gradients(in_windows).items():
        torch.testing.assert_close(gradients(in_tokens)[name], grad)


def test_transposed_keys_use_their_own_axes():
    x = normal(5, 2, TOKENS, CHANNELS)
    module = quantizer()
    keys = copy.deepcopy(module)
    keys.token_axis, keys.channel_axis = -1, -2
    assert torch.equal(keys(x.transpose(-1, -2)).transpose(-1, -2), module(x))


def test_both_branches_in_one_pass_equal_each_alone():
    high, low = quantizer(bits=4), quantizer(bits=2)
    apart = copy.deepcopy(high), copy.deepcopy(low)
    x, upstream = normal(5, TOKENS, CHANNELS), normal(5, TOKENS, CHANNELS, seed=9)
    for count in (0, 2, 5):
        for module in (high, low, *apart):
            module.zero_grad()
        together = high.with_low(low, x, count)
        alone = torch.cat([apart[0](x[:count]), apart[1](x[count:])])
        assert torch.equal(together, alone)
        for out in (together, alone):
            (out * upstream).sum().backward()
        for one, other in zip((high, low), apart, strict=True):
            for name, grad in gradients(other).items():
                torch.testing.assert_close(gradients(one)[name], grad)


@pytest.mark.parametrize('count', [0, 2, 5])
def test_a_linear_layer_behind_it_keeps_the_input_once(count):
    """The same values and gradients as quantizing, then multiplying, without the quantized input among what is kept."""
    high, low = quantizer(bits=4), quantizer(bits=2)
    x, weight, bias = normal(5, TOKENS, CHANNELS), normal(3, CHANNELS, seed=4), normal(3, seed=5)
    found = []
    for sparing in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        modules = [copy.deepcopy(module) for module in (high, low)]
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            if sparing:
                out = learned_linear(leaves[0], *leaves[1:], *modules[0]._joined(modules[1], leaves[0], count, None))
            else:
                out = torch.nn.functional.linear(modules[0].with_low(modules[1], leaves[0], count), *leaves[1:])
        (out * normal(*out.shape, seed=6)).sum().backward()
        found.append([out, *[p.grad for p in [*leaves, *modules[0].parameters(), *modules[1].parameters()]]])
        assert kept.count(x.numel()) == (1 if sparing else 2)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_an_empty_branch_has_gradients_of_zero():
    module = quantizer()
    module(normal(0, TOKENS, CHANNELS)).sum().backward()
    assert all(grad is not None and not grad.any() for grad in gradients(module).values())


def test_the_gradient_scale_knows_one_window_only():
    module = quantizer()
    one, many = (module._part(normal(n, TOKENS, CHANNELS), 0, n, None).gradient_scale for n in (1, 9))
    assert one == many == pytest.approx((3 * CHANNELS) ** -0.5)
    tensor = quantizer(per_token=False)
    assert tensor._part(normal(9, TOKENS, CHANNELS), 0, 9, None).gradient_scale == pytest.approx(
        (3 * CHANNELS * TOKENS) ** -0.5
    )
    slots = torch.arange(9)
    assert tensor._part(normal(9, CHANNELS), 0, 9, slots).gradient_scale == pytest.approx(
        (3 * CHANNELS * TOKENS) ** -0.5
    )


def test_half_precision_inputs_are_quantized_in_float32():
    module = quantizer(bits=8).float()
    x = normal(3, TOKENS, CHANNELS, dtype=torch.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, module(x.float()).bfloat16())
    out.float().sum().backward()
    assert module.step.grad.dtype == torch.float32


def test_a_vanishing_step_is_held():
    module = quantizer()
    with torch.no_grad():
        module.step.fill_(-1.0)
    out = module(normal(2, TOKENS, CHANNELS))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize('options', [{'unsigned': False}, {'unsigned': True, 'offsets': True}])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_first_values_are_no_worse_than_the_first_guess(bits, options):
    x = torch.nn.functional.gelu(normal(4000, dtype=torch.float32)) if options['unsigned'] else normal(4000).float()
    samples = Samples.exact(x, None, 'x')
    module = LearnedQuantizer(bits, channels=CHANNELS, tokens=TOKENS, per_token=True, **options)
    module.fit(samples, MinMaxRange())
    guess = (4 if module.unsigned else 2) * x.abs().mean() / module.highest**0.5
    error = (module.values_of(samples) - samples.values).square().sum()
    first = (module._snapped(samples.values, guess, torch.zeros(())) - samples.values).square().sum()
    assert error <= first * 1.0001
    assert module.step.unique().numel() == 1


def test_statistic_weights():
    weight = normal(5, 20)
    module = StatisticQuantizer(3, axis=0, channels=5, per_channel=True)
    module.mark_calibrated()
    leaf = weight.clone().requires_grad_()
    out = module(leaf)
    scale = 2 * weight.abs().mean(1, keepdim=True)
    codes = out.detach() / scale * 4 - 0.5
    torch.testing.assert_close(codes, codes.round())
    assert set(codes.round().unique().tolist()) == set(range(-4, 4))
    inside = (weight / scale).abs() < 0.99
    assert ((out.detach() - weight).abs() <= scale / 8 + 1e-9)[inside].all()
    out.backward(upstream := normal(5, 20, seed=4))
    assert torch.equal(leaf.grad, upstream)
    assert torch.equal(statistic_values(weight, 0, 4), out)


def decibels(weight, quantized):
    noise = (weight - quantized).square().sum()
    return float(10 * torch.log10(weight.square().sum() / noise))


def test_statistic_weights_clip_hard_at_any_width():
    """Inherent to 2 mean|W|, which is 1.6 standard deviations of normal weights; LSQ fits its step instead."""
    weight = normal(16, 4096, dtype=torch.float32)
    scale = 2 * weight.abs().mean(1, keepdim=True)
    clipping = decibels(weight, weight.clamp(-scale, scale))
    assert clipping == pytest.approx(14.4, abs=0.2)
    for bits, statistic, learned in ((8, 14.4, 41), (4, 13.0, 19)):
        step = LearnedQuantizer(bits, axis=0, channels=16, per_channel=True, weight=True)
        step.fit(Samples.exact(weight, 0, 'weight'), MinMaxRange())
        assert decibels(weight, statistic_values(weight, 0, 2 ** (bits - 1))) == pytest.approx(statistic, abs=0.2)
        assert decibels(weight, step(weight).detach()) == pytest.approx(learned, abs=1)
