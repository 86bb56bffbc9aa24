"""The focusing quantizer: its grid, exact zeros, and gradients against finite differences."""

import pytest
import torch

from mixaq_mmdet.quantization.quantizers.focusing import FocusingQuantizer


def focusing(low=0.1, high=0.6, bits=3):
    quantizer = FocusingQuantizer(bits, name='attn').double()
    quantizer.set_range(*torch.tensor([low, high], dtype=torch.float64))
    return quantizer


def values():
    return torch.tensor([0.0, 0.03, 0.1, 0.13, 0.31, 0.47, 0.6, 0.8, 1.0], dtype=torch.float64)


def test_uniform_inside_clamped_outside():
    out = focusing()(values())
    assert out[1] == out[2] == pytest.approx(0.1)
    assert out[-1] == out[-2] == out[-3] == pytest.approx(0.6)
    steps = (out[1:] - 0.1) / (0.5 / 7)
    torch.testing.assert_close(steps, steps.round())
    inside = slice(2, 7)
    assert (out[inside] - values()[inside]).abs().max() <= 0.25 / 7 + 1e-9


def test_masked_probabilities_stay_exactly_zero():
    """What Swin's mask leaves is 0 or e^-100 of a probability; neither may be lifted to the interval."""
    masked = torch.tensor([0.0, 3.7e-44, 1e-38, 1e-25])
    quantizer = FocusingQuantizer(4, name='attn')
    quantizer.set_range(torch.tensor(0.05), torch.tensor(0.5))
    assert torch.equal(quantizer(masked), torch.zeros(4))
    out = torch.full((4,), 9.0)
    assert torch.equal(quantizer(masked, out), torch.zeros(4))
    assert torch.equal(out, torch.zeros(4))


@pytest.mark.parametrize('end', ['lower', 'upper'])
def test_gradients_of_the_interval_by_finite_differences(end):
    """Rounding passes straight through: its residue is a constant when an end moves."""
    quantizer, x = focusing(), values()
    lower, upper = quantizer.lower.clone(), quantizer.upper.clone()
    x = x[(x != lower) & (x != upper)]  # at an end itself the two sides differ
    weights = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    position = ((x - lower) / (upper - lower)).clamp(0, 1)
    residue = (position * 7).round() / 7 - position

    def smooth(low, high):
        u = ((x - low) / (high - low)).clamp(0, 1) + residue
        return float((weights * torch.where(x > 0, low + (high - low) * u, 0)).sum())

    step = 1e-6
    moved = [smooth(lower + s, upper) if end == 'lower' else smooth(lower, upper + s) for s in (-step, step)]
    tensor = getattr(quantizer, end).requires_grad_(True)
    (grad,) = torch.autograd.grad((weights * quantizer(x)).sum(), tensor)
    assert float(grad) == pytest.approx((moved[1] - moved[0]) / (2 * step), rel=1e-5)


def test_gradient_of_the_input():
    x = values().requires_grad_(True)
    (grad,) = torch.autograd.grad(focusing()(x).sum(), x)
    assert grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_interval_stays_ordered():
    quantizer = focusing()
    with torch.no_grad():
        quantizer.lower.fill_(0.7)
        quantizer.upper.fill_(0.2)
    quantizer.settle()
    assert 0 <= quantizer.lower < quantizer.upper <= 1
    with torch.no_grad():
        quantizer.lower.fill_(1.3)
    quantizer.settle()
    assert 0 <= quantizer.lower < quantizer.upper <= 1


def test_per_channel_is_refused():
    with pytest.raises(ValueError, match='attn: a focusing grid is per tensor; drop per_channel'):
        FocusingQuantizer(4, per_channel=True, name='attn')
