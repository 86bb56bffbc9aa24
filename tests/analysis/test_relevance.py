"""Relevance: every rule conserves it, so does the walk through a backbone, padding included."""

import pytest
import torch
from tiny_backbone import backbone, images

from mixaq_mmdet.analysis import relevance
from mixaq_mmdet.analysis.layer_sensitivity import layer_names
from mixaq_mmdet.analysis.relevance import backbone_relevance
from mixaq_mmdet.analysis.relevance_rules import gated_rule, linear_rule, product_rule, sum_rule

CLOSE = 1e-4


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def relevance_of(*shape):
    return rand(*shape, seed=7).abs()


class TestRules:
    def test_linear(self):
        x, weight, relevance = rand(6, 5), rand(4, 5), relevance_of(6, 4)
        back = linear_rule(x, weight, relevance)
        assert back.min() >= 0
        torch.testing.assert_close(back.sum(-1), relevance.sum(-1), rtol=CLOSE, atol=0)

    def test_linear_goes_where_the_contribution_is(self):
        back = linear_rule(torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[2.0, -1.0, -1.0]]), torch.tensor([[1.0]]))
        torch.testing.assert_close(back, torch.tensor([[0.5, 0.5, 0.0]]))

    def test_linear_without_positive_contributions_spreads_evenly(self):
        back = linear_rule(torch.zeros(2, 4), rand(3, 4), relevance_of(2, 3))
        torch.testing.assert_close(back.sum(-1), relevance_of(2, 3).sum(-1))
        assert torch.equal(back.amin(-1), back.amax(-1))

    def test_product(self):
        left, right, relevance = rand(2, 3, 4), rand(2, 4, 5), relevance_of(2, 3, 5)
        left[0, 0] = 0  # nothing contributes to this row
        a, b = product_rule(left, right, relevance)
        assert a.shape == left.shape
        assert b.shape == right.shape
        for part in (a, b):
            assert part.min() >= 0
            torch.testing.assert_close(part.sum(), relevance.sum() / 2, rtol=CLOSE, atol=0)

    def test_sum(self):
        a, b = sum_rule(torch.tensor([3.0, 0.0, -1.0]), torch.tensor([-1.0, 0.0, 0.0]), torch.ones(3))
        torch.testing.assert_close(a, torch.tensor([0.75, 0.5, 1.0]))
        torch.testing.assert_close(a + b, torch.ones(3))

    def test_attention_gate(self):
        relevance, gradient = relevance_of(3, 3), rand(3, 3)
        gated = gated_rule(relevance, gradient)
        torch.testing.assert_close(gated.sum(), relevance.sum(), rtol=CLOSE, atol=0)
        assert torch.equal(gated > 0, gradient > 0)
        assert torch.equal(gated_rule(relevance, -gradient.abs()), relevance)


def explained(model, image):
    """Gradients of a fixed linear function of the maps."""
    with torch.no_grad():
        maps = model(image)
    return [rand(*m.shape, seed=3) for m in maps]


@pytest.mark.parametrize('size', [(64, 64), (50, 67)], ids=['whole windows', 'padding everywhere'])
def test_the_walk_conserves_relevance_at_every_layer(size):
    model = backbone()
    image = images(1, size)[0]
    found = backbone_relevance(model, image, explained(model, image))
    assert set(found.layers) == {*layer_names(model), 'patch_embed.projection'}
    assert found.layers['patch_embed.projection'] == pytest.approx(1, rel=CLOSE)
    assert float(found.tokens.sum()) == pytest.approx(1, rel=CLOSE)
    assert found.tokens.shape == (-(-size[0] // 4), -(-size[1] // 4))
    for stage, blocks in enumerate(model.stages):
        for number in range(len(blocks.blocks)):
            attention = f'stages.{stage}.blocks.{number}.attn.w_msa'
            whole = found.layers[f'{attention}.proj']
            assert found.layers[f'{attention}.attention_value'] == pytest.approx(whole, rel=CLOSE)
            assert found.layers[f'{attention}.qkv'] == pytest.approx(whole, rel=CLOSE)
            assert found.layers[f'{attention}.query_key'] == pytest.approx(whole / 2, rel=CLOSE)
            prefix = f'stages.{stage}.blocks.{number}.ffn.layers'
            assert found.layers[f'{prefix}.0.0'] == pytest.approx(found.layers[f'{prefix}.1'], rel=CLOSE)


def test_the_walk_sees_the_same_network(monkeypatch):
    """The parts that rules work on add up to the block itself, and the gradient is autograd's."""
    model, image = backbone(), images(1)[0]
    gradients = explained(model, image)
    caught = {}
    original = relevance._through_block

    def spy(walk, step, stream):
        original(walk, step, stream)
        caught[step.path] = walk.gradient

    monkeypatch.setattr(relevance, '_through_block', spy)
    backbone_relevance(model, image, gradients)
    embed, *steps = model.steps()
    entering = embed(model.begin(image))
    x = entering.x.detach().requires_grad_()
    total, stream, number = 0, entering._replace(x=x), 0
    for step in steps:
        if step.kind == 'output':
            total = total + (step.map(stream) * gradients[number]).sum()
            number += 1
        stream = step(stream)
    expected = torch.autograd.grad(total, x)[0]
    torch.testing.assert_close(caught['stages.0.blocks.0'], expected, rtol=1e-3, atol=1e-5)


def test_a_quantized_backbone_is_refused():
    model = backbone({'method': 'MinMax'})
    with pytest.raises(ValueError, match=r'leave model\.backbone\.quant out'):
        backbone_relevance(model, images(1)[0], [])
