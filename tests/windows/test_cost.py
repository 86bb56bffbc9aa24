"""MACs and bit operations against the published anchors and against a count taken on a running stock Swin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mixaq_mmdet.windows.cost import (
    Cost,
    LayerBits,
    SwinSpec,
    backbone_cost,
    backbone_layers,
    pair_tiers,
)

SWIN_T = SwinSpec()
SMALL = SwinSpec(embed_dims=8, depths=(1, 2, 3), num_heads=(1, 2, 4), window_size=4, strides=(4, 2, 2))
GIGA = 1e9


def total(shape, count, spec=SWIN_T):
    return sum(layer.macs(count) for layer in backbone_layers(spec, shape))


@pytest.mark.parametrize(
    ('shape', 'count', 'giga', 'digits'),
    [
        ((224, 224), 'executed', 4.49, 2),
        ((224, 224), 'window', 4.49, 2),
        ((800, 1216), 'executed', 90.6, 1),
        ((800, 1216), 'window', 97.1, 1),
        ((800, 1333), 'executed', 99.0, 1),
        ((800, 1333), 'window', 104.5, 1),
        ((800, 1088), 'window', 86.6, 1),
    ],
)
def test_swin_t_macs(shape, count, giga, digits):
    assert round(total(shape, count) / GIGA, digits) == giga


@pytest.mark.parametrize(
    ('count', 'shares', 'compressible'),
    [('executed', (16.3, 15.8, 47.6, 16.2), 0.960), ('window', (15.4, 15.4, 48.1, 17.3), 0.963)],
)
def test_stage_and_compressible_shares(count, shares, compressible):
    layers = backbone_layers(SWIN_T, (800, 1216))
    everything = sum(layer.macs(count) for layer in layers)
    for stage, share in enumerate(shares):
        stage_macs = sum(layer.macs(count) for layer in layers if layer.stage == stage and layer.compressible)
        assert 100 * stage_macs / everything == pytest.approx(share, abs=0.06)
    inside = sum(layer.macs(count) for layer in layers if layer.compressible)
    assert inside / everything == pytest.approx(compressible, abs=6e-4)


@pytest.mark.parametrize('count', ['executed', 'window'])
def test_mixing_four_and_two_bits_bottoms_out(count):
    cost = backbone_cost(SWIN_T, (800, 1088), [0.8] * 6, bits=LayerBits(4, 4, 2))
    assert cost.relative('paper', count) == pytest.approx(0.615, abs=1.5e-3)
    assert cost.mean_activation_bits(count) == pytest.approx(4 * cost.relative('paper', count))


def test_standard_convention_multiplies_both_operands():
    bits = LayerBits(weight=4, high=8, low=4)
    cost = backbone_cost(SMALL, (64, 64), [0.5] * 4, bits=bits)
    expected = 0
    for layer in backbone_layers(SMALL, (64, 64)):
        half = layer.executed // 2 if layer.compressible and layer.stage < 2 else 0  # stage 3: one window
        products = (8 * 8, 4 * 4) if layer.kind == 'matmul' else (4 * 8, 4 * 4)
        expected += (layer.executed - half) * products[0] + half * products[1]
    assert cost.realised[0] == (0.5, 0.5, 0.0, 0.0)
    assert cost.bit_operations('standard') == expected


def test_second_operand_may_have_its_own_bits():
    bits = LayerBits(high=8, low=8, second_high=4, second_low=2)
    assert bits.operations('matmul', 'standard') == 32
    assert bits.operations('matmul', 'standard', low=True) == 16
    assert bits.operations('matmul', 'paper') == 256


def test_bits_per_layer_by_function():
    def bits_of(layer):
        return LayerBits(8, 8, 8) if layer.name == 'patch_embed.projection' else LayerBits(4, 4, 2)

    cost = backbone_cost(SMALL, (64, 64), [0.0] * 4, bits=bits_of)
    first, rest = cost.group(lambda layer: layer.stage < 0)[True], cost.group(lambda layer: layer.stage < 0)[False]
    assert first.mean_activation_bits() == 8
    assert rest.mean_activation_bits() == 4


def test_pruned_windows_cost_nothing_and_groups_add_up():
    dense = backbone_cost(SWIN_T, (224, 224), [0.0] * 6)
    pruned = backbone_cost(SWIN_T, (224, 224), [0.0] * 6, [0.5] * 6)
    inside = sum(layer.executed for layer in dense.layers if layer.compressible)
    stage4 = sum(layer.executed for layer in dense.layers if layer.compressible and layer.stage == 3)
    assert dense.macs() - pruned.macs() == (inside - stage4) / 2  # stage 4 is one window: half of it rounds to none
    assert pruned.realised[1] == (0.5, 0.5, 0.5, 0.5, 0.5, 0.0)
    for key in (lambda layer: layer.stage, lambda layer: layer.pair, lambda layer: layer.name):
        parts = pruned.group(key).values()
        assert sum(part.bit_operations('standard') for part in parts) == pruned.bit_operations('standard')
    assert pruned.summary()['macs'] == {'executed': pruned.macs(), 'window': pruned.macs('window')}


def test_odd_depths_have_their_own_pair():
    assert SMALL.pair_stages == (0, 1, 2, 2)
    pairs = {layer.name: layer.pair for layer in backbone_layers(SMALL, (64, 64))}
    assert pairs['stages.0.blocks.0.ffn.layers.1'] == 0
    assert pairs['stages.2.blocks.1.attn.w_msa.qkv'] == 2
    assert pairs['stages.2.blocks.2.attn.w_msa.qkv'] == 3
    assert pairs['stages.1.downsample.reduction'] is None


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=4, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_cost_falls_with_every_ratio(height, width, hundredths):
    low = [a / 100 for a, _ in hundredths]
    prune = [b / 100 for _, b in hundredths]
    bits = LayerBits(4, 8, 4)
    cost = backbone_cost(SMALL, (height, width), low, prune, bits)
    more = backbone_cost(SMALL, (height, width), [a + 0.5 - b for a, b in zip(low, prune, strict=True)], prune, bits)
    for convention in ('paper', 'standard'):
        for count in ('executed', 'window'):
            assert 0 < more.relative(convention, count) <= cost.relative(convention, count) <= 1
    assert all(a + b <= 1 for a, b in zip(*cost.realised, strict=True))


class Counter:
    """Counts MACs of a running model: hooks on Linear and Conv2d, attention products by hand in ``WindowMSA``."""

    def __init__(self, model, window_msa):
        self.by_name = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.register_forward_hook(self.layer_hook(name))
            elif isinstance(module, window_msa):
                module.register_forward_hook(self.attention_hook(name))

    def layer_hook(self, name):
        def hook(module, inputs, output):
            self.by_name[name] = (
                output.numel() * module.weight[0].numel()
                if isinstance(module, nn.Conv2d)
                else (output.numel() * module.in_features)
            )

        return hook

    def attention_hook(self, name):
        def hook(module, inputs, output):
            windows, tokens, dims = inputs[0].shape
            self.by_name[f'{name}.query_key'] = self.by_name[f'{name}.attention_value'] = (
                windows * tokens * tokens * dims
            )

        return hook


@pytest.mark.parametrize('shape', [(64, 64), (70, 93), (33, 17)])
@pytest.mark.parametrize(
    'spec',
    [SMALL, SwinSpec(embed_dims=6, depths=(2, 1), num_heads=(3, 3), window_size=7, mlp_ratio=2, strides=(4, 2))],
)
def test_equals_what_stock_swin_executes(spec, shape):
    swin = pytest.importorskip('mmdet.models.backbones.swin', reason='needs mmdet with compiled mmcv')
    stages = len(spec.depths)
    model = swin.SwinTransformer(
        embed_dims=spec.embed_dims,
        depths=spec.depths,
        num_heads=spec.num_heads,
        window_size=spec.window_size,
        mlp_ratio=spec.mlp_ratio,
        strides=spec.strides,
        out_indices=range(stages),
    )
    counter = Counter(model, swin.WindowMSA)
    with torch.no_grad():
        model(torch.zeros(1, 3, *shape))
    assert counter.by_name == {layer.name: layer.executed for layer in backbone_layers(spec, shape)}


def test_window_layout_equals_executed_without_padding():
    for layer in backbone_layers(SWIN_T, (224, 448)):
        assert layer.executed == layer.window


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: pair_tiers(SWIN_T, (64, 64), [0.5] * 5), 'low_ratios has 5 entries; this backbone needs 6'),
        (lambda: pair_tiers(SWIN_T, (64, 64), [0.5] * 6, [0]), 'prune_ratios has 1 entries'),
        (lambda: pair_tiers(SWIN_T, (0, 64), [0.5] * 6), r'shape=\(0, 64\) has an empty side'),
        (lambda: total((64, 64), 'padded'), "count='padded' is unknown; use one of"),
        (lambda: SwinSpec(depths=(2, 2)), 'must be equally long'),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_convention():
    cost = Cost(backbone_layers(SMALL, (32, 32)), pair_tiers(SMALL, (32, 32), [0] * 4))
    with pytest.raises(ValueError, match="convention='bops' is unknown"):
        cost.bit_operations('bops')
