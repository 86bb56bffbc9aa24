"""The quantizer and the importance that the pages add work as the pages say, word for word."""

from __future__ import annotations

import pytest
import torch
from page_blocks import blocks
from tiny_backbone import backbone, images, signal_to_noise

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization.observers import MinMaxRange, Samples
from mixaq_mmdet.registry import IMPORTANCE, QUANT_METHODS, QUANTIZERS


@pytest.fixture
def page(request):
    """Run the page's blocks; forget what they registered afterwards."""
    before = [(registry, dict(registry.module_dict)) for registry in (IMPORTANCE, QUANT_METHODS, QUANTIZERS)]
    for block in blocks(request.param):
        exec(compile(block.text, block.place, 'exec'), {})
    yield request.param
    for registry, table in before:
        registry._module_dict = table


@pytest.mark.parametrize('page', ['add-a-quantizer.md'], indirect=True)
def test_the_quantizer_keeps_the_contract(page):
    data = torch.randn(9, 5, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    errors = []
    for bits in (2, 3, 4):
        quantizer = QUANTIZERS.get('PowerOfTwo')(bits=bits, channels=6, per_channel=True, name='fc')
        samples = Samples.exact(data, quantizer.axis, 'fc')
        quantizer.fit(samples, MinMaxRange())
        steps = quantizer.step.log2()
        assert torch.equal(steps, steps.round())
        assert torch.equal(quantizer(quantizer(data)), quantizer(data))
        assert torch.equal(quantizer(torch.zeros(2, 6)), torch.zeros(2, 6))
        simulated = quantizer.simulate(samples, samples.low, samples.high)
        torch.testing.assert_close(simulated, quantizer.values_of(samples), rtol=1e-6, atol=0)
        errors.append(float((quantizer(data) - data).square().sum()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize('page', ['add-a-quantizer.md'], indirect=True)
def test_its_method_quantizes_a_backbone(page):
    quant = {'method': 'Shifts', 'w_bits': 8, 'a_bits': 8, 'low_a_bits': 4}
    model = backbone(quant, low_ratios=0.5)
    Calibrator(model).run(images())
    with torch.no_grad():
        assert signal_to_noise(backbone()(images()[0]), model(images()[0])) > 5
    twin = backbone(quant, low_ratios=0.5)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(images()[1])[1], model(images()[1])[1])


@pytest.mark.parametrize('page', ['add-an-importance.md'], indirect=True)
def test_the_importance_ranks_windows_by_their_peaks(page):
    model = backbone(low_ratios=0.5, importance={'type': 'Peak', 'tokens': 1})
    x = images()[0]
    with torch.no_grad(), model.record_windows() as records:
        model(x)
    stage = records[0]
    assert stage.regular.scores.shape[0] == 1
    ranked = stage.regular.scores[0][stage.regular.order[0]]
    assert torch.equal(ranked, ranked.sort(descending=True).values)
    with pytest.raises(ValueError, match=r'importance\.tokens=0'):
        backbone(importance={'type': 'Peak', 'tokens': 0})
