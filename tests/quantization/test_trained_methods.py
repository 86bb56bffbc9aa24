"""Methods whose steps are trained, on a whole backbone: gradients, recomputation, state, the low branch alone."""

import copy

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import NotCalibratedError
from mixaq_mmdet.quantization.learned_grid import learned_linear

TRAINED = ['LSQ', 'OFQ']


def calibrated(method, **options):
    model = backbone({'method': method, 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}, **options)
    Calibrator(model).run(images())
    return model


def test_layers_train_by_the_sparing_product(monkeypatch):
    calls = []
    module = 'mixaq_mmdet.quantization.quantizers.learned'
    monkeypatch.setattr(f'{module}.learned_linear', lambda *arguments: calls.append(1) or learned_linear(*arguments))
    model = calibrated('OFQ', low_ratios=0.5)
    (tiling,) = images(1, size=(64, 64))
    model.train()(tiling)
    assert len(calls) == 4 * 3  # qkv, proj and two of the FFN in each of three blocks
    with torch.no_grad():
        model(tiling)
    with torch.autocast('cpu', torch.bfloat16):
        sum(out.float().sum() for out in model(tiling)).backward()
    assert len(calls) == 4 * 3


@pytest.mark.parametrize('method', TRAINED)
class TestEveryTrainedMethod:
    @pytest.mark.parametrize('ratio', [0.0, 0.5, 1.0])
    def test_every_parameter_gets_a_finite_gradient(self, method, ratio):
        model = calibrated(method).train()
        model.sample_ratios(ratio)
        sum(out.square().sum() for out in model(torch.cat(images()))).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        low = [p.grad for name, p in model.named_parameters() if '.low.' in name]
        assert any(grad.any() for grad in low) == (ratio > 0)

    def test_recomputation_changes_no_gradient(self, method):
        """Checkpointed blocks (``with_cp``) run twice; custom backwards must find what they kept."""
        grads = []
        for with_cp in (False, True):
            model = calibrated(method, with_cp=with_cp, drop_path_rate=0.0, low_ratios=0.5).train()
            sum(out.square().sum() for out in model(torch.cat(images()))).backward()
            grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        for name, grad in grads[0].items():
            torch.testing.assert_close(grads[1][name], grad, msg=lambda text, name=name: f'{name}: {text}')

    def test_state(self, method):
        source = calibrated(method)
        target = backbone({'method': method, 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}, seed=3)
        with pytest.raises(NotCalibratedError):
            target(images()[0])
        identities = {name: id(parameter) for name, parameter in target.named_parameters()}
        target.load_state_dict(source.state_dict(), strict=True)
        assert {name: id(parameter) for name, parameter in target.named_parameters()} == identities
        with torch.no_grad():
            for a, b in zip(source(images()[0]), copy.deepcopy(target)(images()[0]), strict=True):
                assert torch.equal(a, b)
        with pytest.raises(ValueError, match='method'):
            backbone({'method': 'MinMax', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}).load_state_dict(
                source.state_dict()
            )

    def test_the_low_branch_alone(self, method):
        model = calibrated(method)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if '.low.' in name or '_low.' in name:
                    parameter.add_(1.0)
        Calibrator(model, branches='low').run(images())
        for name, value in model.state_dict().items():
            if '_low.' in name:
                assert torch.equal(value, before[name.replace('_low.', '.')]), name
            elif '.low.' in name:
                torch.testing.assert_close(value, before[name], rtol=0.1, atol=0.05)
            else:
                assert torch.equal(value, before[name]), name

    @pytest.mark.parametrize('sampled', [False, True])
    def test_training_steps_with_low_windows_mark_the_low_branch_as_trained(self, method, sampled):
        """Sampled or configured: what counts is that windows ran low while gradients were taken."""
        model = calibrated(method)
        set_ratios = model.sample_ratios if sampled else model.set_ratios
        set_ratios(0.0, 0.5)
        model.train()(images()[0])
        set_ratios(0.5)
        with torch.no_grad():
            model(images()[0])
        model.eval()(images()[0])
        assert not model.low_trained
        model.train()(images()[0])
        other = calibrated(method)
        other.load_state_dict(model.state_dict())
        assert other.low_trained

    def test_the_first_layer_has_eight_bits(self, method):
        model = backbone({'method': method, 'w_bits': 4, 'a_bits': 4})
        assert model.patch_embed.projection.weight_quant.bits == 8
        assert model.stages[0].blocks[0].ffn.layers[1].weight_quant.bits == 4


def test_fitted_methods_have_no_low_branch_of_its_own():
    model = backbone({'method': 'MinMax'})
    Calibrator(model).run(images())
    with pytest.raises(ValueError, match=r"cannot calibrate the low branch alone.*use branches='all'"):
        Calibrator(model, branches='low').run(images())
    with pytest.raises(ValueError, match="branches='both' is unknown"):
        Calibrator(model, branches='both')


@torch.no_grad()
def test_the_ends_of_a_network_under_ofq_are_not_cut_off():
    """StatsQ clips at 2 mean|W|, which eight bits do not mend."""
    noise = {}
    for grid in ('LSQ', 'StatsQ'):
        model = backbone({'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'edge_weights': grid})
        Calibrator(model).run(images())
        first, inner = model.patch_embed.projection, model.stages[0].blocks[0].attn.w_msa.qkv
        noise[grid] = (first.weight - first.quantized_weight()).square().sum() / first.weight.square().sum()
        assert type(inner.weight_quant).__name__ == 'StatisticQuantizer'
    assert noise['LSQ'] < 1e-3 < noise['StatsQ']


def test_values_have_a_step_for_each_channel_and_keys_for_each_position():
    model = calibrated('OFQ')
    attention = model.stages[0].blocks[0].attn.w_msa
    keys, values = attention.query_key.operands['k'], attention.attention_value.operands['v']
    tokens, channels = attention.window_size[0] ** 2, attention.embed_dims // attention.num_heads
    assert keys.high.step.shape == (tokens,)
    assert values.high.step.shape == values.low.step.shape == (channels,)
    assert values.high.step.unique().numel() > 1, 'each is fitted to its channel'
