"""PTQ4ViT: twin grids and their shift, gradients that weigh errors, the released code's faults on request."""

from __future__ import annotations

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.models.two_branch_block import TwoBranchSwinBlock
from mixaq_mmdet.quantization import QuantLinear, QuantMatmul, build_method
from mixaq_mmdet.quantization.adaptive_log import GELU_MINIMUM
from mixaq_mmdet.quantization.methods import ptq4vit
from mixaq_mmdet.quantization.observers import MinMaxRange, Samples
from mixaq_mmdet.quantization.quantizers.twin import TwinGELUQuantizer, TwinSoftmaxQuantizer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

QUICK = {'candidates': 8, 'rounds': 1, 'rows': 16}


def fitted(kind, x, bits=4, **options):
    quantizer = kind(bits, **options)
    samples = Samples.exact(x, None, 'x')
    quantizer.fit(samples, MinMaxRange())
    return quantizer, float(samples.squared_error(quantizer.values_of(samples)))


def probabilities():
    return torch.randn(100, 49, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1).flatten()


def gelu_results():
    return torch.nn.functional.gelu(torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 2)


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_both_ranges_of_probabilities_are_exact_on_their_codes(bits):
    quantizer = TwinSoftmaxQuantizer(bits)
    quantizer.set_grid(torch.tensor(3.0))
    top = 2 ** (bits - 1) - 1
    large = torch.arange(top + 1) / top
    small = large * 2**-3
    torch.testing.assert_close(quantizer(small), small, rtol=1e-6, atol=0)  # a shift of the large step
    above = large[large > 2**-3]
    torch.testing.assert_close(quantizer(above), above, rtol=1e-6, atol=0)
    assert len(quantizer(torch.linspace(0, 1, 9999)).unique()) <= 2**bits


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_both_signs_of_gelu_are_exact_on_their_codes(bits):
    quantizer = TwinGELUQuantizer(bits)
    negative = GELU_MINIMUM / 2 ** (bits - 1)
    for shift in (0, 3, 7):
        quantizer.set_grid(torch.tensor(negative * 2**shift))
        below = -torch.arange(2 ** (bits - 1) + 1) * negative
        above = torch.arange(2 ** (bits - 1)) * negative * 2**shift
        torch.testing.assert_close(quantizer(below), below, rtol=1e-6, atol=0)
        torch.testing.assert_close(quantizer(above), above, rtol=1e-6, atol=0)
        assert len(quantizer(torch.linspace(-1, 100, 9999)).unique()) <= 2**bits
    assert float(quantizer(torch.tensor(-5.0))) == pytest.approx(-GELU_MINIMUM)


def test_a_fitted_positive_step_is_a_shift_of_the_negative_one():
    quantizer, error = fitted(TwinGELUQuantizer, gelu_results())
    shift = torch.log2(quantizer.step / quantizer.negative)
    assert float(shift) == round(float(shift)) > 0
    _, free = fitted(TwinGELUQuantizer, gelu_results(), code_parity=True)
    _, plain = fitted(UniformQuantizer, gelu_results(), symmetric=True)
    assert free <= error < plain


def test_the_released_sum_of_ranges_is_worse():
    _, chosen = fitted(TwinSoftmaxQuantizer, probabilities())
    _, summed = fitted(TwinSoftmaxQuantizer, probabilities(), code_parity=True)
    _, plain = fitted(UniformQuantizer, probabilities(), symmetric=True)
    assert chosen < plain
    assert summed > 1.5 * chosen


@pytest.mark.parametrize('kind', [TwinSoftmaxQuantizer, TwinGELUQuantizer])
def test_twin_grids_keep_the_contract(kind):
    x = probabilities()
    source, _ = fitted(kind, x)
    target = kind(4)
    target.load_state_dict(source.state_dict())
    once = source(x)
    assert torch.equal(target(x), once)
    torch.testing.assert_close(source(once), once, rtol=1e-6, atol=0)
    assert torch.equal(source(torch.zeros(3)), torch.zeros(3))
    assert source(x.bfloat16()).dtype == torch.bfloat16
    samples = Samples.exact(x, None, 'x')
    torch.testing.assert_close(source.simulate(samples, samples.low, samples.high), source.values_of(samples))
    x.requires_grad_()
    source(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    with pytest.raises(ValueError, match='a twin grid is per tensor; drop per_channel'):
        kind(4, per_channel=True)


def calibrated(**options):
    model = backbone({'method': 'PTQ4ViT', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 3, **QUICK, **options})
    ticks = []
    calibrator = Calibrator(model, tick=lambda: ticks.append(1))
    calibrator.run(images(2))
    assert len(ticks) == calibrator.steps(2)
    return model


def test_errors_are_weighed_by_gradients_of_both_branches(monkeypatch):
    """Also of the first layers, where the model is still the float one and a plain gradient would be zero."""
    seen = []
    sample = ptq4vit.sample_with_gradients

    def watched(block, *args):
        seen.append((block, sample(block, *args)))
        return seen[-1][1]

    monkeypatch.setattr(ptq4vit, 'sample_with_gradients', watched)
    model = calibrated()
    assert len(seen) == 1 + 3 + 1
    for block, samples in seen:
        for module, found in samples.items():
            branches = {weighted.sample.branch for weighted in found}
            assert branches == ({'high', 'low'} if isinstance(block, TwoBranchSwinBlock) else {'high'})
            for sample, importance in found:
                assert importance is not None
                assert importance.shape == sample.shape
                assert float(importance.abs().max()) > 0
                if not isinstance(module, QuantMatmul):
                    assert len(sample.left) <= QUICK['rows']
    weights = [layer.weight_quant for layer in model.modules() if isinstance(layer, QuantLinear)]
    assert all(q.scale.dim() == 0 and int(q.zero_point) == 8 for q in weights)


def test_the_search_changes_steps():
    searched, plain = (
        {name: value for name, value in calibrated(rounds=rounds).state_dict().items() if name.endswith('scale')}
        for rounds in (1, 0)
    )
    assert sum(not torch.equal(searched[name], plain[name]) for name in plain) > len(plain) / 2


def test_a_twin_grid_by_override():
    overrides = [{'pattern': '*', 'roles': ['attn'], 'grid': 'TwinSoftmax'}]
    model = backbone({'method': 'MinMax', 'a_bits': 4, 'overrides': overrides})
    quantizer = model.stages[0].blocks[0].attn.w_msa.attention_value.operands['attn'].high
    assert isinstance(quantizer, TwinSoftmaxQuantizer)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'candidates': 0}, r'quant\.candidates=0 must be a whole number of at least 1'),
        ({'rounds': -1}, r'quant\.rounds=-1 must be'),
        ({'code_parity': 1}, r'quant\.code_parity=1 must be True or False'),
        ({'seed': None}, r'quant\.seed=None must be'),
        ({'a_symmetric': True}, r'quant\.a_symmetric=True has no effect: no grid of PTQ4ViT'),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        build_method({'method': 'PTQ4ViT', **option})
