"""AnnealingHook: which weights keep their values, from when on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner import get_priority
from tiny_backbone import backbone, images

from mixaq_mmdet.engine import AnnealingHook
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization.functional import distance_to_boundary

QUANT = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}


def calibrated(**options):
    model = backbone({**QUANT, **options})
    Calibrator(model).run(images(1))
    return model.train()


def step(model, hook, iteration=0, epoch=0):
    """One step of training under the hook; weights before and after, by path of the layer."""
    runner = SimpleNamespace(model=model, iter=iteration, epoch=epoch)
    layers = {path: m for path, m in model.named_modules() if hasattr(m, 'weight_quant')}
    before = {path: layer.weight.detach().clone() for path, layer in layers.items()}
    distances = {path: layer.boundary_distance() for path, layer in layers.items()}
    hook.before_train_iter(runner, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer.zero_grad()
    sum(out.square().sum() for out in model(images(1)[0])).backward()
    optimizer.step()
    hook.after_train_iter(runner, 0)
    moved = {path: layer.weight.detach() != before[path] for path, layer in layers.items()}
    return moved, distances


@pytest.mark.parametrize('method', ['OFQ', 'LSQ'])
def test_only_weights_near_a_boundary_move(method):
    model = calibrated(method=method)
    moved, distances = step(model, AnnealingHook(begin=0, boundary=0.1))
    for path, distance in distances.items():
        assert not moved[path][distance > 0.1].any(), path
    # four bits of random weights clip all of a layer's codes here and there, which leaves it without a gradient
    reached = [path for path in distances if model.get_submodule(path).weight.grad.any()]
    assert len(reached) > len(distances) / 2
    for path in reached:
        assert moved[path][distances[path] <= 0.1].any(), path
    bias = model.stages[0].blocks[0].attn.w_msa.proj.bias
    before = bias.detach().clone()
    step(model, AnnealingHook(begin=0))
    assert not torch.equal(bias, before)


@pytest.mark.parametrize(('by_epoch', 'iteration', 'epoch', 'holds'), [
    (False, 6, 9, False), (False, 7, 0, True), (True, 99, 6, False), (True, 0, 7, True),
])  # fmt: skip
def test_training_is_free_until_it_begins(by_epoch, iteration, epoch, holds):
    moved, _ = step(calibrated(), AnnealingHook(begin=7, by_epoch=by_epoch, boundary=0.0), iteration, epoch)
    assert any(where.any() for where in moved.values()) != holds


def test_products_of_query_and_key_weights_hold_values_alone():
    moved, distances = step(calibrated(qkr=True), AnnealingHook(begin=0, boundary=0.1))
    path = 'stages.0.blocks.0.attn.w_msa.qkv'
    query, key, value = moved[path].chunk(3)
    assert query.any()
    assert key.any()
    assert not value[distances[path].chunk(3)[2] > 0.1].any()


def test_codes_change_between_two_of_them_and_not_beyond_the_last():
    steps = torch.tensor([-9.0, -2.0, -1.5, -1.4, 0.0, 0.45, 0.5, 3.0])
    expected = torch.tensor([7.5, 0.5, 0.0, 0.1, 0.5, 0.05, 0.0, 2.5])
    torch.testing.assert_close(distance_to_boundary(steps, -2, 1), expected)


def test_averages_see_what_is_held():
    assert get_priority(AnnealingHook(0).priority) < get_priority(EMAHook.priority)


def test_a_model_without_codes_of_weights_is_refused():
    hook = AnnealingHook(begin=0)
    for quant in (None, {'method': 'RepQ'}):
        with pytest.raises(ValueError, match=r"AnnealingHook has nothing to hold.*method='OFQ'"):
            hook.before_train(SimpleNamespace(model=backbone(quant)))
    hook.before_train(SimpleNamespace(model=backbone(QUANT)))
    with pytest.raises(ValueError, match=r'AnnealingHook: boundary=0\.6 must lie in \[0, 0\.5\]; 0\.005 is usual'):
        AnnealingHook(begin=0, boundary=0.6)
