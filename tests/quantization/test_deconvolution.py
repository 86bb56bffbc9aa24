"""``deconvolution=True``: a mask head's deconvolution on grids, as the linear layer of each pixel that it is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from tiny_backbone import backbone
from tiny_detector import tiny_mask_rcnn
from torch import nn

from mixaq_mmdet import quantize
from mixaq_mmdet.deploy.grids import weight_codes
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import DETECTOR_BUFFER, QuantConvTranspose2d, build_method, replace_layers
from mixaq_mmdet.quantization.quantizers.base import quantizer_mode
from mixaq_mmdet.quantization.state import decode_config, encode_config

W4A8 = dict(method='MinMax', w_bits=4, a_bits=8)
FEW = {
    'MinMax': {},
    'RepQ': {},
    'LSQ': {},
    'OFQ': {},
    'AdaLog': dict(keep=1, expansions=1, rounds=1, rows=8),
    'NoisyQuant': dict(shift_steps=1, noise_steps=1, rows=8),
    'FIMAQ': dict(steps=2, rounding='AdaRound'),
    'GLFQ': dict(steps=2, rounding='StraightThrough'),
}


def detector(**quant) -> nn.Module:
    model = tiny_mask_rcnn(type='TwoBranchSwin', quant=dict(method='MinMax', w_bits=8, a_bits=8))
    model.update(type='QuantDetector', base=model.type, detector_quant={**W4A8, **quant})
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(model).eval()


def images() -> dict:
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0)))
    image = torch.randint(0, 255, (3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    return {'inputs': [image], 'data_samples': [sample]}


def quantized(*layers: nn.Module, **quant) -> tuple[nn.Module, list[tuple[str, str]]]:
    """The layers as the children of a module, quantized, and what stayed float."""
    method = build_method({**W4A8, 'deconvolution': True, **quant})
    root = nn.Sequential(*layers)
    replace_layers(root, method)
    return root, method.kept_float


def test_codes_are_those_of_a_linear_layer_and_results_those_of_its_pixels_side_by_side():
    torch.manual_seed(0)
    stock = nn.ConvTranspose2d(6, 5, 2, 2)
    weight, bias = stock.weight.detach().clone(), stock.bias.detach().clone()
    (layer,), _ = quantized(stock)
    method = build_method({**W4A8, 'deconvolution': True})
    method.fit_weights(layer)
    x = torch.randn(3, 6, 4, 7)
    with quantizer_mode(layer, 'float'):
        torch.testing.assert_close(layer(x), F.conv_transpose2d(x, weight, bias, 2))
    codes = weight_codes(layer, 'upsample')
    assert codes.codes.shape == (20, 6)
    assert len(set(codes.scale.tolist())) == 20  # a grid for each output of each place
    rows = (codes.codes - codes.zero_point[:, None]) * codes.scale[:, None]
    pixels = x.permute(0, 2, 3, 1) @ rows.t() + bias.repeat(4)  # (B, H, W, places * outputs)
    expected = pixels.view(3, 4, 7, 2, 2, 5).permute(0, 5, 1, 3, 2, 4).reshape(3, 5, 8, 14)
    with quantizer_mode(list(layer.input_quant.branches().values()), 'float'):
        torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.from_source(layer.source_weight), weight)


@pytest.mark.parametrize(
    'options',
    [
        dict(kernel_size=3, stride=2),
        dict(kernel_size=4, stride=2, padding=1),
        dict(kernel_size=2, stride=2, output_padding=1),
        dict(kernel_size=2, stride=2, groups=2),
        dict(kernel_size=(2, 3), stride=(2, 3)),
        dict(kernel_size=1, stride=1),
    ],
)
def test_others_stay_float_and_are_told(options):
    (layer,), kept = quantized(nn.ConvTranspose2d(4, 4, **options))
    assert type(layer) is nn.ConvTranspose2d
    assert kept == [('0', 'ConvTranspose2d')]


def test_without_the_option_all_stay_float():
    (layer,), kept = quantized(nn.ConvTranspose2d(4, 4, 2, 2), deconvolution=False)
    assert type(layer) is nn.ConvTranspose2d
    assert kept == []


@pytest.mark.parametrize('method', FEW)
def test_methods_calibrate_it(method):
    model = detector(method=method, deconvolution=True, **FEW[method])
    layer = model.roi_head.mask_head.upsample
    assert isinstance(layer, QuantConvTranspose2d)
    Calibrator(model).run([images()])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].clone(), out.clone())))
    with torch.no_grad():
        model.test_step(images())
        x, out = seen[0]
        with quantizer_mode(layer, 'float'):
            float_out = layer(x)
    assert len(x) > 0
    assert out.shape == (len(x), 8, 28, 28)
    error = float((out - float_out).norm() / float_out.norm())
    assert 0 < error < 0.5


def test_gradients_reach_weight_and_bias():
    model = detector(method='LSQ', deconvolution=True)
    Calibrator(model).run([images()])
    layer = model.roi_head.mask_head.upsample
    layer(torch.randn(1, 8, 3, 3)).square().sum().backward()
    assert all(float(x.grad.abs().sum()) > 0 for x in (layer.weight, layer.bias, layer.weight_quant.step))


def test_files_of_earlier_versions_load_and_other_ones_do_not():
    old = detector().state_dict()
    name = f'backbone.{DETECTOR_BUFFER}'
    without = {key: value for key, value in decode_config(old[name]).items() if key != 'deconvolution'}
    old[name] = encode_config(without)
    detector().load_state_dict(dict(old))
    with pytest.raises(ValueError, match=r'deconvolution=True \(checkpoint: False\)'):
        detector(deconvolution=True).load_state_dict(dict(old), strict=False)


def test_where_there_is_none_it_is_refused():
    with pytest.raises(ValueError, match=r'quant.deconvolution=True has no effect: no deconvolution'):
        backbone({**W4A8, 'deconvolution': True})
    with pytest.raises(ValueError, match=r'detector_quant.deconvolution=True has no effect'):
        detector(deconvolution=True, overrides=[dict(pattern='roi_head.mask_head.upsample', enabled=False)])
    with pytest.raises(ValueError, match=r'deconvolution=1 '):
        detector(deconvolution=1)


def test_the_python_api_gives_it_to_the_heads_alone():
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(tiny_mask_rcnn())
    quantize(model, 'MinMax', w_bits=8, a_bits=8, scope='detector', deconvolution=True)
    assert isinstance(model.roi_head.mask_head.upsample, QuantConvTranspose2d)
    assert not model.backbone.quant_method.deconvolution
