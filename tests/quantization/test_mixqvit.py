"""MixQViT: extreme channels are clipped before the fold and nothing else changes; layers have bits of their own."""

import pytest
import torch
from tiny_backbone import backbone, images, signal_to_noise

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import build_method
from mixaq_mmdet.quantization.methods.mixqvit import clip_extreme
from mixaq_mmdet.quantization.quantizers.base import quantizer_mode

WIDE = torch.tensor([1.0] * 30 + [40.0])


def calibrated(**quant):
    model = backbone({'w_bits': 4, 'a_bits': 4, **quant})
    Calibrator(model).run(images())
    return model


def test_only_the_extreme_channel_is_narrowed_to_the_threshold():
    low, high = clip_extreme(-WIDE, WIDE, torch.zeros(31), deviations=2.0)
    width = 2 * WIDE
    limit = width.mean() + 2 * width.std(correction=0)
    assert torch.equal(low[:30], -WIDE[:30])
    assert torch.equal(high[:30], WIDE[:30])
    assert high[30] - low[30] == pytest.approx(float(limit))


def test_both_ends_move_towards_the_centre():
    low, high = clip_extreme(-WIDE, 3 * WIDE, torch.full((31,), 0.5), deviations=1.0)
    assert low[30] < 0.5 < high[30]
    assert (high[30] - 0.5) / (0.5 - low[30]) == pytest.approx((3 * 40 - 0.5) / 40.5, rel=1e-4)


def test_constant_channels_survive():
    low, high = clip_extreme(torch.zeros(4), torch.zeros(4), torch.zeros(4), deviations=2.0)
    assert torch.equal(low, torch.zeros(4))
    assert torch.equal(high, torch.zeros(4))


def test_without_extreme_channels_it_is_repq():
    a, b = calibrated(method='RepQ'), calibrated(method='MixQViT', clip_deviations=100.0)
    with torch.no_grad():
        for x, y in zip(a(images()[0]), b(images()[0]), strict=True):
            assert torch.equal(x, y)


def test_the_clipped_fold_is_exact_without_quantizers():
    model = calibrated(method='MixQViT', clip_deviations=0.5)
    with torch.no_grad(), quantizer_mode(model, 'float'):
        assert signal_to_noise(backbone()(images()[0]), model(images()[0])) > 90


def test_clipping_makes_the_common_step_finer():
    path = 'stages.0.blocks.0.attn.w_msa.qkv.input_quant.high.scale'
    states = [calibrated(method='MixQViT', clip_deviations=d).state_dict()[path] for d in (100.0, 0.0)]
    assert states[1] < states[0]


def test_bits_per_layer_through_overrides():
    overrides = [
        {'pattern': 'stages.0.blocks.0.ffn.layers.1', 'w_bits': 6, 'a_bits': 6, 'low_a_bits': 3},
        {'pattern': 'stages.1.*', 'w_bits': 3, 'a_bits': 3},
    ]
    model = calibrated(method='MixQViT', low_a_bits=2, overrides=overrides)
    fc2 = model.stages[0].blocks[0].ffn.layers[1]
    assert (fc2.weight_quant.bits, fc2.input_quant.high.bits, fc2.input_quant.low.bits) == (6, 6, 3)
    assert model.stages[1].blocks[0].ffn.layers[1].weight_quant.bits == 3
    model.set_ratios(0.5)
    with torch.no_grad():
        assert all(torch.isfinite(out).all() for out in model(images()[0]))


def test_negative_clipping_is_refused():
    with pytest.raises(ValueError, match=r'quant\.clip_deviations=-1 must be at least 0'):
        build_method({'method': 'MixQViT', 'clip_deviations': -1})
