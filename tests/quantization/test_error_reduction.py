"""The closed forms of ERQ: ridge regression is solved, refinement never raises an error, moments add up."""

from __future__ import annotations

import pytest
import torch

from mixaq_mmdet.quantization.error_reduction import (
    InputMoments,
    RowGrid,
    mean_moments,
    reduce_activation_error,
    reduce_weight_error,
    round_refined,
)
from mixaq_mmdet.quantization.functional import affine_parameters, fake_quantize

TOKENS, FEATURES, OUTPUTS = 200, 12, 7
RIDGE = 0.05


def layer_and_inputs(seed=0):
    """Weight, bias, float inputs of correlated channels with means, and what a 3-bit grid makes of them."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(FEATURES, FEATURES, generator=generator)
    x = torch.randn(TOKENS, FEATURES, generator=generator) @ mix + torch.randn(FEATURES, generator=generator)
    quantized = fake_quantize(x, *affine_parameters(x.min(), x.max(), 3), bits=3)
    weight = torch.randn(OUTPUTS, FEATURES, generator=generator)
    return weight.double(), torch.randn(OUTPUTS, generator=generator).double(), x.double(), quantized.double()


def moments_of(quantized, x):
    moments = InputMoments(FEATURES, x.device)
    moments.add(quantized, x)
    return moments


def means_of(quantized, x):
    return mean_moments({'high': moments_of(quantized, x)}, low_share=0.5)


def row_grid(weight, bits):
    scale, zero_point = affine_parameters(weight.amin(1), weight.amax(1), bits)
    return RowGrid(scale.double()[:, None], zero_point.double()[:, None], bits)


def output_error(weight, bias, quantized, x, target_weight, target_bias):
    return float((quantized @ weight.t() + bias - x @ target_weight.t() - target_bias).square().sum(1).mean())


def test_activation_error_is_answered_by_the_ridge_regression():
    """Least squares over tokens, with rows sqrt(ridge) I appended that ask for no change."""
    weight, bias, x, quantized = layer_and_inputs()
    found = reduce_activation_error(weight, bias, *means_of(quantized, x), RIDGE)
    ones = torch.cat([quantized, torch.ones(TOKENS, 1).double()], 1) / TOKENS**0.5
    lost = (x - quantized) @ weight.t() / TOKENS**0.5
    damped = torch.cat([ones, RIDGE**0.5 * torch.eye(FEATURES + 1).double()])
    change = torch.linalg.lstsq(damped, torch.cat([lost, torch.zeros(FEATURES + 1, OUTPUTS).double()])).solution
    torch.testing.assert_close(found[0], weight + change[:-1].t(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], bias + change[-1], rtol=1e-9, atol=1e-9)
    before = output_error(weight, bias, quantized, x, weight, bias)
    assert output_error(*found, quantized, x, weight, bias) < 0.9 * before


def test_inputs_without_error_change_nothing():
    weight, bias, x, _ = layer_and_inputs()
    found = reduce_activation_error(weight, bias, *means_of(x, x), RIDGE)
    assert torch.equal(found[0], weight)
    assert torch.equal(found[1], bias)


def test_moments_of_two_parts_are_those_of_the_whole():
    _, _, x, quantized = layer_and_inputs()
    whole = moments_of(quantized, x)
    first, second = moments_of(quantized[:70], x[:70]), moments_of(quantized[70:], x[70:])
    for a, b, total in zip(first.sums(), second.sums(), whole.sums(), strict=True):
        torch.testing.assert_close(a + b, total, rtol=1e-12, atol=1e-10)
    empty = moments_of(quantized[:0], x[:0])
    assert not any(part.any() for part in empty.sums())


def test_branches_count_by_their_share_of_windows_and_not_by_their_tokens():
    _, _, x, quantized = layer_and_inputs()
    high, low = moments_of(x, x), moments_of(quantized[:50], x[:50])
    gram, cross = mean_moments({'high': high, 'low': low}, low_share=0.25)
    torch.testing.assert_close(gram, 0.75 * high.gram / TOKENS + 0.25 * low.gram / 50)
    torch.testing.assert_close(cross, 0.25 * low.cross / 50)
    for share, alone in ((0.0, high), (1.0, low)):
        torch.testing.assert_close(mean_moments({'high': high, 'low': low}, share)[0], alone.gram / alone.tokens)
    torch.testing.assert_close(mean_moments({'high': high}, 1.0)[0], high.gram / TOKENS)


def test_a_branch_that_counts_alone_has_the_smaller_error():
    weight, bias, x, quantized = layer_and_inputs()
    coarse = (quantized / 3).round() * 3
    branches = {'high': moments_of(quantized, x), 'low': moments_of(coarse, x)}

    def error_of_low(share):
        solved = reduce_activation_error(weight, bias, *mean_moments(branches, share), 1e-6)
        return output_error(*solved, coarse, x, weight, bias)

    errors = [error_of_low(share) for share in (1.0, 0.5, 0.0)]
    assert errors[0] < errors[1] < errors[2]


def test_few_tokens_with_huge_values_are_solved():
    weight, bias, x, quantized = layer_and_inputs()
    means = means_of(quantized[:3] * 1e6, x[:3] * 1e6)
    found = reduce_activation_error(weight, bias, *means, 1e-9)
    before = output_error(weight, bias, quantized[:3] * 1e6, x[:3] * 1e6, weight, bias)
    assert output_error(*found, quantized[:3] * 1e6, x[:3] * 1e6, weight, bias) < 0.1 * before


@pytest.mark.parametrize('bits', [2, 3, 4])
@pytest.mark.parametrize('seed', range(4))
def test_refinement_never_raises_the_error_of_a_row(seed, bits):
    weight, _, _, quantized = layer_and_inputs(seed)
    moments = quantized.t() @ quantized / TOKENS
    grid = row_grid(weight * 0.8, bits)  # some weights lie beyond the ends of their grid

    def errors(refinements):
        error = round_refined(weight, moments, grid, refinements) - weight
        return torch.einsum('oi,ij,oj->o', error, moments, error)

    nearest, *refined = (errors(number) for number in (0, 1, 2, 5, 100))
    previous = nearest
    for error in refined:
        assert bool((error <= previous * (1 + 1e-9)).all())
        previous = error
    assert bool((previous < 0.99 * nearest).any())


def test_no_refinement_is_rounding_to_nearest_on_the_grid():
    weight, _, _, quantized = layer_and_inputs()
    scale, zero_point = affine_parameters(weight.amin(1), weight.amax(1), 3)
    nearest = round_refined(weight, quantized.t() @ quantized, row_grid(weight, 3), 0)
    torch.testing.assert_close(nearest.float(), fake_quantize(weight.float(), scale, zero_point, 3, axis=0))


def test_the_columns_left_answer_those_that_are_rounded():
    weight, bias, _, quantized = layer_and_inputs()
    gram, _ = means_of(quantized, quantized)
    grid = row_grid(weight, 3)
    nearest = round_refined(weight, gram[:-1, :-1], grid, 0)
    refined = round_refined(weight, gram[:-1, :-1], grid, 100)
    solved, new_bias = reduce_weight_error(weight, bias, gram, grid, 1e-4, 100)
    codes = solved / grid.scale + grid.zero_point
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
    assert 0 <= float(codes.min()) <= float(codes.max().round()) <= 7
    errors = [
        output_error(w, b, quantized, quantized, weight, bias)
        for w, b in ((solved, new_bias), (refined, bias), (nearest, bias))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.7 * errors[2]
