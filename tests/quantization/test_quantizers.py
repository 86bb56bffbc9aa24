"""Every registered quantizer keeps the contract of the base class; a new one adds one row to CASES."""

import pytest
import torch
from torch import nn

from mixaq_mmdet.quantization import NotCalibratedError, quantizer_mode
from mixaq_mmdet.quantization.observers import MinMaxRange, Samples
from mixaq_mmdet.registry import QUANTIZERS, lookup

CASES = [
    pytest.param('Uniform', {}, id='uniform'),
    pytest.param('Uniform', {'symmetric': True}, id='uniform-symmetric'),
    pytest.param('Uniform', {'per_channel': True}, id='uniform-per-channel'),
    pytest.param('Uniform', {'observe_per_channel': True}, id='uniform-observes-channels'),
    pytest.param('Log2', {}, id='log2'),
    pytest.param('LogSqrt2', {}, id='log-sqrt2'),
    pytest.param('AdaptiveLog', {}, id='adaptive-log'),
    pytest.param('Noisy', {}, id='noisy'),
]


def build(name, options, bits=4):
    return lookup(QUANTIZERS, name, 'type')(bits=bits, channels=6, name='blocks.0.fc1_in', **options)


def data():
    return torch.rand(9, 5, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)


def fitted(name, options, bits=4):
    quantizer = build(name, options, bits)
    samples = Samples.exact(data(), quantizer.axis, quantizer.name)
    quantizer.fit(samples, MinMaxRange())
    return quantizer


@pytest.mark.parametrize(('name', 'options'), CASES)
class TestEveryQuantizer:
    def test_uncalibrated_use_names_the_layer(self, name, options):
        with pytest.raises(NotCalibratedError, match=r'^not calibrated: blocks\.0\.fc1_in has no range yet'):
            build(name, options)(data())

    def test_idempotent_and_zero_stays_zero(self, name, options):
        quantizer = fitted(name, options)
        once = quantizer(data())
        torch.testing.assert_close(quantizer(once), once, rtol=1e-6, atol=0)
        assert torch.equal(quantizer(torch.zeros(2, 6)), torch.zeros(2, 6))

    def test_error_falls_with_bits(self, name, options):
        errors = [float((fitted(name, options, bits)(data()) - data()).square().sum()) for bits in (2, 3, 4)]
        assert errors == sorted(errors, reverse=True)

    def test_simulate_is_what_forward_does(self, name, options):
        quantizer = fitted(name, options)
        samples = Samples.exact(data(), quantizer.axis, quantizer.name)
        rows = data().movedim(-1, 0).flatten(1) if quantizer.axis else data().view(1, -1)
        expected = quantizer(data()).movedim(-1, 0).flatten(1) if quantizer.axis else quantizer(data()).view(1, -1)
        order = rows.argsort(dim=1)
        torch.testing.assert_close(
            quantizer.simulate(samples, samples.low, samples.high), expected.gather(1, order), rtol=1e-6, atol=0
        )

    def test_state_round_trip(self, name, options):
        source, target = fitted(name, options), build(name, options)
        target.load_state_dict(source.state_dict())
        assert torch.equal(target(data()), source(data()))

    def test_other_bits_are_refused(self, name, options):
        holder = nn.ModuleDict({'fc': build(name, options, bits=6)})
        state = nn.ModuleDict({'fc': fitted(name, options, bits=4)}).state_dict()
        with pytest.raises(ValueError, match='fc has 6 bits in the config and 4 in the checkpoint'):
            holder.load_state_dict(state)

    def test_float_file_loads_and_leaves_it_uncalibrated(self, name, options):
        quantizer = fitted(name, options)
        quantizer.load_state_dict({})
        with pytest.raises(NotCalibratedError):
            quantizer(data())

    def test_two_passes_find_the_exact_ends(self, name, options):
        quantizer = build(name, options)
        x = data()
        with quantizer_mode(quantizer, 'observe'):
            for start in (quantizer.start_ranges, quantizer.start_histogram):
                start()
                assert torch.equal(quantizer(x), x)
        samples = quantizer.finish()
        rows = x.view(-1, 6) if quantizer.observe_axis is not None else x.view(-1, 1)
        assert torch.equal(samples.low, rows.amin(0))
        assert torch.equal(samples.high, rows.amax(0))

    def test_float_mode_passes_through(self, name, options):
        quantizer = build(name, options)
        with quantizer_mode(nn.Sequential(quantizer), 'float'):
            assert torch.equal(quantizer(data()), data())
        assert quantizer.mode == 'quantize'

    def test_gradient_reaches_the_input(self, name, options):
        x = data().requires_grad_()
        fitted(name, options, bits=8)(x).sum().backward()
        assert float(x.grad.mean()) > 0.9

    def test_empty_input(self, name, options):
        assert fitted(name, options)(torch.empty(0, 6)).shape == (0, 6)

    def test_bits_are_checked(self, name, options):
        with pytest.raises(ValueError, match=r'blocks\.0\.fc1_in: bits=9'):
            build(name, options, bits=9)


def test_every_registered_quantizer_is_a_case():
    elsewhere = {'Learned', 'Statistic', 'Focusing', 'TwinSoftmax', 'TwinGELU'}  # test_learned.py, test_ptq4vit.py ...
    assert {case.values[0] for case in CASES} | elsewhere == set(QUANTIZERS.module_dict)


def test_logarithmic_grid_is_per_tensor():
    with pytest.raises(ValueError, match='per tensor; drop per_channel'):
        build('LogSqrt2', {'per_channel': True})


def test_unknown_mode():
    with (
        pytest.raises(ValueError, match="mode='train' is unknown; use one of"),
        quantizer_mode(build('Uniform', {}), 'train'),
    ):
        pass
