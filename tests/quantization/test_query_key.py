"""OFQ's query-key reparameterisation: the function of a float checkpoint, gradients, state, costs, what it refuses."""

from __future__ import annotations

import pytest
import torch
from tiny_backbone import backbone, images, signal_to_noise
from torch import nn

from mixaq_mmdet import convert
from mixaq_mmdet.deploy.convert import refuse_query_key
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.models.backbone_cost import backbone_bops, layer_bits
from mixaq_mmdet.quantization import CONFIG_BUFFER, build_method, encode_config, quantizer_mode
from mixaq_mmdet.quantization.layers import KeepFloat
from mixaq_mmdet.quantization.quantizers.statistic import StatisticQuantizer
from mixaq_mmdet.quantization.query_key import to_query_key

QKR = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2, 'qkr': True}
QKV_AT_8 = {'pattern': '*.w_msa.qkv', 'a_bits': 8}
HEADS, CHANNELS = 2, 6


def reparameterised(weight_quant):
    torch.manual_seed(0)
    linear = nn.Linear(CHANNELS, 3 * CHANNELS, dtype=torch.float64)
    return linear, to_query_key(linear, HEADS, weight_quant, KeepFloat())


@pytest.mark.parametrize('ratio', [0.0, 0.5])
@pytest.mark.parametrize('qkv_bias', [True, False])
def test_a_float_checkpoint_keeps_its_function(ratio, qkv_bias):
    """With padding, shifted windows and the biases of queries and keys, all of which softmax has to cancel or keep."""
    options = {'qkv_bias': qkv_bias, 'low_ratios': ratio}
    stock, model = backbone(**options), backbone(QKR, **options)
    for form in ('eager', 'static'):
        model.form = form
        with torch.no_grad(), quantizer_mode(model, 'float'):
            for expected, out in zip(stock(images()[0]), model(images()[0]), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_without_the_bias_row_it_would_be_another_function():
    stock, model = backbone(), backbone(QKR)
    for block in model.stages[0].blocks:
        with torch.no_grad():
            block.attn.w_msa.qkv.bias[: block.attn.w_msa.embed_dims].zero_()
    with torch.no_grad(), quantizer_mode(model, 'float'):
        assert signal_to_noise(stock(images()[0]), model(images()[0])) < 60


def test_gradients_are_those_of_finite_differences():
    _, quant = reparameterised(KeepFloat())
    x = torch.randn(2, 3, CHANNELS, dtype=torch.float64, requires_grad=True)

    def logits_and_values(x, weight, bias):
        q, k, v = torch.func.functional_call(quant, {'weight': weight, 'bias': bias}, (x,))
        return q @ k.transpose(-2, -1), v

    parameters = [p.detach().clone().requires_grad_() for p in (quant.weight, quant.bias)]
    assert torch.autograd.gradcheck(logits_and_values, (x, *parameters))


def test_the_gradient_passes_the_rounding_of_the_product_straight_through():
    """As if the rounded product had been computed from query and key weights: d/dWq = Wk dM, d/dWk = Wq dM^T."""
    rows = (HEADS + 1) * CHANNELS
    quantizer = StatisticQuantizer(3, axis=0, channels=rows, per_channel=True)
    quantizer.mark_calibrated()
    linear, quant = reparameterised(quantizer)
    q, k, _ = quant(torch.randn(2, 3, CHANNELS, dtype=torch.float64))
    weight = quant.quantized_weight()
    upstream = torch.randn_like(weight)
    (got,) = torch.autograd.grad(weight, linear.weight, upstream)
    query, key, _ = linear.weight.detach().chunk(3)
    for head in range(HEADS):
        part = slice(head * CHANNELS // HEADS, (head + 1) * CHANNELS // HEADS)
        of_product = upstream[head * CHANNELS : (head + 1) * CHANNELS]
        torch.testing.assert_close(got[:CHANNELS][part], key[part] @ of_product)
        torch.testing.assert_close(got[CHANNELS : 2 * CHANNELS][part], query[part] @ of_product.t())
    torch.testing.assert_close(got[2 * CHANNELS :], upstream[HEADS * CHANNELS :])
    assert (q.shape, k.shape) == ((2, HEADS, 3, CHANNELS), (2, 1, 3, CHANNELS))


@pytest.mark.parametrize('ratio', [0.0, 0.5, 1.0])
def test_it_calibrates_and_trains_in_both_branches(ratio):
    model = backbone(QKR)
    noise = Calibrator(model).run(images())
    assert not any('.k.' in name for name in noise), 'keys are on the grid of the input'
    reference = backbone()
    with torch.no_grad():
        assert signal_to_noise(reference(images()[0]), model(images()[0])) > 3
    model.train().sample_ratios(ratio)
    sum(out.square().sum() for out in model(torch.cat(images()))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    query, key, _ = model.stages[0].blocks[0].attn.w_msa.qkv.weight.grad.chunk(3)
    assert query.any(), 'query weights learn through the product'
    assert key.any()


def test_state():
    source, target = backbone(QKR), backbone(QKR, seed=3)
    Calibrator(source).run(images())
    target.load_state_dict(source.state_dict(), strict=True)
    with torch.no_grad():
        for a, b in zip(source(images()[0]), target(images()[0]), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match=r'qkr=False \(checkpoint: True\)'):
        backbone({**QKR, 'qkr': False}).load_state_dict(source.state_dict())


def test_files_from_before_it_load():
    source = backbone({**QKR, 'qkr': False})
    Calibrator(source).run(images())
    old = {key: value for key, value in build_method({**QKR, 'qkr': False}).config.items() if key != 'qkr'}
    state = {**source.state_dict(), CONFIG_BUFFER: encode_config(old)}
    backbone({**QKR, 'qkr': False}).load_state_dict(state)
    with pytest.raises(ValueError, match=r'qkr=True \(checkpoint: False\)'):
        backbone(QKR).load_state_dict(state)


def test_costs_count_the_products():
    """heads / 2 times the operations of queries and keys; products over all channels; the bits of keys."""
    plain, model = backbone({**QKR, 'qkr': False}), backbone({**QKR, 'overrides': [QKV_AT_8]})
    for block, heads in (('stages.0.blocks.0', 1), ('stages.1.blocks.0', 2)):
        before, after = (
            {layer.name: layer for layer in backbone_bops(net, (64, 64)).layers if layer.name.startswith(block)}
            for net in (plain, model)
        )
        qkv, product = f'{block}.attn.w_msa.qkv', f'{block}.attn.w_msa.query_key'
        assert after[qkv].executed == before[qkv].executed * (heads + 1) // 3
        assert after[product].executed == before[product].executed * heads
    bits = layer_bits(model, after[product])
    assert (bits.high, bits.low, bits.second_high, bits.second_low) == (4, 2, 8, 2)


def test_it_is_refused_by_name_where_it_has_no_form():
    model = backbone(QKR)
    Calibrator(model).run(images())
    with pytest.raises(ValueError, match=r'qkr=True is simulated only.*qkr=False to convert or export'):
        convert(model)
    refuse_query_key(backbone({**QKR, 'qkr': False}))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'qkr': 1}, r'quant\.qkr=1 must be True or False'),
        ({'overrides': [{'pattern': '*', 'roles': ['k'], 'a_bits': 8}]}, r"roles=\['k'\] has no effect with qkr=True"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        build_method({**QKR, **options})


def test_an_attention_that_stays_float_is_reparameterised_all_the_same():
    overrides = [{'pattern': '*.w_msa.*', 'enabled': False}]
    stock, model = backbone(), backbone({**QKR, 'overrides': overrides})
    with torch.no_grad(), quantizer_mode(model, 'float'):
        for expected, out in zip(stock(images()[0]), model(images()[0]), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
