"""Quantization math against the slow reference, and the properties every grid has."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixaq_mmdet.quantization.functional import (
    affine_parameters,
    check_bits,
    dequantize,
    fake_log_quantize,
    fake_quantize,
    log_dequantize,
    log_quantize,
    quantize,
    reference_fake_log_quantize,
    reference_fake_quantize,
)

FINITE = st.floats(-1e4, 1e4, width=32)
BITS = st.integers(2, 8)


def tensors(elements=FINITE, size=40):
    return st.lists(elements, min_size=1, max_size=size).map(lambda values: torch.tensor(values))


def grid_for(x, bits, symmetric=False, include_zero=True):
    return affine_parameters(x.min(), x.max(), bits, symmetric, include_zero)


@given(tensors(), tensors(), BITS, st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_equals_reference(seen, x, bits, symmetric, include_zero):
    scale, zero_point = grid_for(seen, bits, symmetric, include_zero)
    expected = reference_fake_quantize(x, float(scale), int(zero_point), bits)
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, bits), expected, rtol=0, atol=0)
    codes = quantize(x, scale, zero_point, bits)
    assert codes.min() >= 0
    assert codes.max() < 2**bits
    torch.testing.assert_close(dequantize(codes, scale, zero_point), expected, rtol=0, atol=0)


@given(tensors(), BITS, st.booleans())
@settings(deadline=None)
def test_idempotent_and_keeps_zero(x, bits, symmetric):
    scale, zero_point = grid_for(x, bits, symmetric)
    once = fake_quantize(x, scale, zero_point, bits)
    assert torch.equal(fake_quantize(once, scale, zero_point, bits), once)
    assert float(fake_quantize(torch.zeros(()), scale, zero_point, bits)) == 0


@given(tensors(), BITS)
@settings(deadline=None)
def test_error_is_at_most_half_a_step_inside_the_range(x, bits):
    scale, zero_point = grid_for(x, bits)
    error = (fake_quantize(x, scale, zero_point, bits) - x).abs().max()
    # a rounded zero point moves the ends by up to half a step
    assert error <= scale * 1.001 + 1e-6


@pytest.mark.parametrize('quantizer', ['uniform', 'log2', 'logsqrt2'])
def test_error_falls_with_bits(quantizer):
    x = torch.rand(4000, generator=torch.Generator().manual_seed(0)) ** 4
    errors = []
    for bits in range(2, 9):
        if quantizer == 'uniform':
            values = fake_quantize(x, *grid_for(x, bits), bits)
        else:
            values = fake_log_quantize(x, x.max(), bits, 1 if quantizer == 'log2' else 2)
        errors.append(float((values - x).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]


@given(tensors(st.floats(0, 1, width=32)), BITS, st.sampled_from([1, 2]), st.floats(0.125, 2, width=32))
@example(torch.tensor([2.0**-149]), 8, 1, 2.0)
@settings(max_examples=100, deadline=None)
def test_log_equals_reference(x, bits, steps, scale):
    flushed = torch.finfo(x.dtype).tiny  # what is smaller than any normal number may become zero
    # at a rounding boundary of log2 the last bit decides: stay clear of it
    exponent = -steps * torch.log2(x.double() / scale)
    clear = ((exponent - exponent.floor() - 0.5).abs() > 1e-5) | (x == 0)
    values = fake_log_quantize(x, torch.tensor(scale), bits, steps)
    expected = reference_fake_log_quantize(x, scale, bits, steps)
    torch.testing.assert_close(values[clear], expected[clear], rtol=1e-6, atol=flushed)
    codes = log_dequantize(log_quantize(x, torch.tensor(scale), bits, steps), torch.tensor(scale), bits, steps)
    torch.testing.assert_close(codes, values, rtol=1e-6, atol=flushed)
    assert torch.equal(values[x == 0], torch.zeros(int((x == 0).sum())))


def test_per_channel_is_each_channel_alone():
    x = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(1))
    for axis in (0, 1, 2, -1):
        rows = x.movedim(axis, 0).flatten(1)
        scale, zero_point = affine_parameters(rows.amin(1), rows.amax(1), 4)
        whole = fake_quantize(x, scale, zero_point, 4, axis).movedim(axis, 0)
        for index, row in enumerate(x.movedim(axis, 0)):
            assert torch.equal(whole[index], fake_quantize(row, scale[index], zero_point[index], 4))


def test_symmetric_grid_holds_both_ends():
    x = torch.tensor([-3.0, 1.0, 2.0])
    scale, zero_point = grid_for(x, 4, symmetric=True)
    assert int(zero_point) == 8
    ends = torch.tensor([-3.0, 3.0])
    torch.testing.assert_close(fake_quantize(ends, scale, zero_point, 4), ends)


@pytest.mark.parametrize('value', [0.0, 5.0, -5.0, 1e-42])
@pytest.mark.parametrize('include_zero', [True, False])
def test_constant_input_is_kept(value, include_zero):
    x = torch.full((4,), value)
    scale, zero_point = grid_for(x, 4, include_zero=include_zero)
    assert torch.isfinite(scale)
    assert scale > 0
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, 4), x)


def test_gradient_is_one_inside_the_range_and_zero_outside():
    x = torch.tensor([-9.0, -1.0, 0.3, 1.0, 9.0], requires_grad=True)
    scale, zero_point = affine_parameters(torch.tensor(-1.0), torch.tensor(1.0), 8)
    fake_quantize(x, scale, zero_point, 8).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_log_gradient_is_zero_where_the_value_is_clipped_or_zero():
    x = torch.tensor([0.0, 1e-9, 0.3, 1.0, 2.0], requires_grad=True)
    fake_log_quantize(x, torch.tensor(1.0), 3, 2).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('with_grad', [False, True])
def test_half_precision_input_is_computed_in_float32(dtype, with_grad):
    x = torch.rand(300, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_(with_grad)
    scale, zero_point = affine_parameters(torch.tensor(0.0), torch.tensor(1.0), 8)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        uniform = fake_quantize(x, scale, zero_point, 8)
        logarithmic = fake_log_quantize(x, torch.tensor(1.0), 8, 2)
    assert uniform.dtype == logarithmic.dtype == dtype
    wide = x.detach().float()
    assert torch.equal(uniform.detach(), fake_quantize(wide, scale, zero_point, 8).to(dtype))
    assert torch.equal(logarithmic.detach(), fake_log_quantize(wide, torch.tensor(1.0), 8, 2).to(dtype))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_out_receives_the_result(dtype):
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(3)).to(dtype)
    out = torch.empty_like(x)
    scale, zero_point = grid_for(x, 4)
    with torch.no_grad():
        fake_quantize(x[:3], scale, zero_point, 4, out=out[:3])
        fake_log_quantize(x[3:], x.max().float(), 4, 2, out=out[3:])
        assert torch.equal(out[:3], fake_quantize(x[:3], scale, zero_point, 4))
        assert torch.equal(out[3:], fake_log_quantize(x[3:], x.max().float(), 4, 2))


def test_double_stays_double():
    x = torch.rand(8, dtype=torch.float64)
    assert fake_quantize(x, *grid_for(x, 8), 8).dtype == torch.float64


@pytest.mark.parametrize('bits', [1, 9, 4.0, '4', True, None])
def test_bits_outside_the_supported_are_refused(bits):
    with pytest.raises(ValueError, match=r'quant\.w_bits=.* use a whole number of bits from 2 to 8'):
        check_bits(bits, 'quant.w_bits')
