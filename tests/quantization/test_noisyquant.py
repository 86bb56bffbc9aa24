"""NoisyQuant: a smaller error on heavy tails, an exact fold, noise that integers take, what is refused."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from tiny_backbone import backbone, images
from torch import nn

from mixaq_mmdet.deploy.grids import describe_grid
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import Fold, build_method
from mixaq_mmdet.quantization.layers import BranchQuantizers, to_quant_linear
from mixaq_mmdet.quantization.methods.noisyquant import draw_direction, fold_noise, quantized_with
from mixaq_mmdet.quantization.observers import MSERange, Samples
from mixaq_mmdet.quantization.output_samples import Sample, Weighted
from mixaq_mmdet.quantization.output_search import OutputSearch
from mixaq_mmdet.quantization.quantizers.noisy import NoisyQuantizer
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

QUICK = {'shift_steps': 4, 'noise_steps': 4, 'rows': 16}
CHANNELS = 16


def heavy_tailed(tokens=512, seed=0):
    """Most values near a few of each channel's own, and a long tail."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(tokens, CHANNELS, generator=generator)
    return normal.square() * normal.sign() + 0.3


def fitted_layer(bits=3, kind=NoisyQuantizer):
    torch.manual_seed(0)
    weight = UniformQuantizer(bits, axis=0, channels=8, per_channel=True, role='weight', name='weight')
    inputs = BranchQuantizers(lambda branch: kind(bits, channels=CHANNELS, branch=branch, name=branch), two=False)
    layer = to_quant_linear(nn.Linear(CHANNELS, 8), weight, inputs).eval()
    weight.fit(Samples.exact(layer.weight, 0, 'weight'), MSERange())
    inputs.high.fit(Samples.exact(heavy_tailed(), None, 'x'), MSERange())
    return layer


def search_of(layer):
    x = heavy_tailed()
    sample = Sample('high', x, None, None, lambda out: out, x, torch.Size((len(x), 8)))
    return OutputSearch(layer, [Weighted(sample, None)], lambda tensors: None)


@torch.no_grad()
def test_found_noise_lowers_the_expected_error_on_heavy_tails():
    """Also on values that the search did not see."""
    layer = fitted_layer(4)
    quantizer = layer.input_quant.high
    method = build_method({'method': 'NoisyQuant', 'shift_steps': 8, 'noise_steps': 8})
    noise = method._find(search_of(layer), [quantizer])
    assert noise.any()

    def error(x):
        target = nn.functional.linear(x, layer.weight, layer.bias)
        return float((layer(x) - target).square().mean())

    for x in (heavy_tailed(), heavy_tailed(4096, seed=1)):
        quantizer.noise.zero_()
        plain = error(x)
        quantizer.noise.copy_(noise)
        assert error(x) < 0.95 * plain


def test_no_noise_is_among_what_is_tried():
    """So that the error of the samples never grows."""
    layer = fitted_layer(8)
    search, quantizer = search_of(layer), layer.input_quant.high
    noise = build_method({'method': 'NoisyQuant', 'shift_steps': 1, 'noise_steps': 1})._find(search, [quantizer])
    (term,) = search.terms
    weight = layer.quantized_weight()
    errors = [term.error(quantized_with(quantizer, term.left, n), weight) for n in (noise, torch.zeros_like(noise))]
    assert errors[0] <= errors[1]


@torch.no_grad()
def test_the_fold_is_exact():
    """Norm and layer with the noise inside give what the quantizer with the noise beside it gives."""
    torch.manual_seed(1)
    norms = [nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)]
    layer = fitted_layer(kind=UniformQuantizer)
    quantizer, stream = layer.input_quant.high, torch.randn(64, CHANNELS) * 3
    noise = torch.randn(CHANNELS) * quantizer.scale
    expected = nn.functional.linear(
        quantized_with(quantizer, norms[0](stream), noise), layer.quantized_weight(), layer.bias
    )
    fold_noise(Fold(norms, layer), noise)
    torch.testing.assert_close(layer(norms[0](stream)), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(norms[0].bias, norms[1].bias)
    assert int(layer.folded) == 1


def calibrated(**options):
    model = backbone({'method': 'NoisyQuant', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 3, **QUICK, **options})
    ticks = []
    calibrator = Calibrator(model, tick=lambda: ticks.append(1))
    calibrator.run(images(2))
    assert len(ticks) == calibrator.steps(2)
    return model


@pytest.fixture(scope='module')
def noisy():
    """Read only."""
    return calibrated()


def test_noise_moves_into_norms_and_stays_in_quantizers_elsewhere(noisy):
    float_model = backbone()
    for stage, other in zip(noisy.stages, float_model.stages, strict=True):
        for block, plain in zip(stage.blocks, other.blocks, strict=True):
            for name in ('norm1', 'norm2'):
                noise = getattr(block, name).bias - getattr(plain, name).bias
                torch.testing.assert_close(
                    getattr(block, f'{name}_low').bias - getattr(plain, f'{name}_low').bias, noise
                )
            torch.testing.assert_close(block.pad_value, block.norm1.bias - plain.norm1.bias)
            kept = block.ffn.layers[1].input_quant
            assert type(block.attn.w_msa.qkv.input_quant.high) is UniformQuantizer
            assert not torch.equal(kept.high.noise, kept.low.noise)
    merging = noisy.stages[0].downsample
    assert merging.reduction.bias is not None
    assert int(merging.reduction.folded) == 1
    assert noisy.patch_embed.projection.input_quant.high.__class__ is not NoisyQuantizer


def test_noise_is_an_offset_of_the_integer_grid(noisy):
    quantizer = noisy.stages[0].blocks[0].ffn.layers[1].input_quant.high
    entry, tensors = describe_grid(quantizer, 'fc2', 'input')
    assert entry['tensors'] == {'before': [quantizer.channels], 'after': [quantizer.channels]}
    assert torch.equal(tensors['before'], -tensors['after'])


def test_the_released_draw_on_request():
    ours, theirs = (draw_direction(4000, torch.Generator().manual_seed(0), parity) for parity in (False, True))
    assert float(ours.abs().max()) <= 1
    assert abs(float(ours.mean())) < 0.1
    assert float(theirs.std()) == pytest.approx(2, rel=0.1)
    assert float(theirs.mean()) == pytest.approx(-1, abs=0.1)


def test_calibrating_again_starts_without_the_old_noise(noisy):
    model = deepcopy(noisy)
    Calibrator(model).run(images(1))
    with torch.no_grad():
        for a, b in zip(model(images(1)[0]), noisy(images(1)[0]), strict=True):
            assert float((a - b).norm() / b.norm()) < 0.3


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ({'shift_steps': 0}, r'quant\.shift_steps=0 must be a whole number of at least 1'),
        ({'noise_steps': 'x'}, r"quant\.noise_steps='x' must be"),
        ({'code_parity': None}, r'quant\.code_parity=None must be True or False'),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(ValueError, match=message):
        build_method({'method': 'NoisyQuant', **option})
