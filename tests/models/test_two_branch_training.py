"""Training habits: gradients for all, checkpointing, half precision, copies, several processes."""

import copy
import pickle

import pytest
import torch
from forked import on_two_ranks
from mmengine.model import ExponentialMovingAverage
from stock_twin import TINY, assert_same, images, randomise, run, twins
from torch.nn.parallel import DistributedDataParallel

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.quantization import Quantizer

EMPTY_BRANCHES = {
    'no low window': (0.0, 0.0),
    'no high window': (1.0, 0.0),
    'no low window, some pruned': (0.0, 0.5),
    'no high window, some pruned': (0.5, 0.5),
    'no window at all': (0.0, 1.0),
    'all three tiers': (0.3, 0.3),
    'mixed': ([0.0, 1.0, 0.0, 0.2, 0.0], [0.0, 0.0, 1.0, 0.1, 0.5]),
}


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1,)], ids=str)
@pytest.mark.parametrize('with_cp', [False, True], ids=['', 'with_cp'])
@pytest.mark.parametrize('ratios', EMPTY_BRANCHES.values(), ids=EMPTY_BRANCHES.keys())
def test_every_parameter_gets_a_gradient(ratios, with_cp, out_indices):
    model = TwoBranchSwin(**TINY, with_cp=with_cp, out_indices=out_indices)
    model.sample_ratios(*ratios)
    sum(out.sum() for out in model(images(1, 3, 64, 72, dtype=torch.float32))).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_neck_that_ignores_maps_leaves_no_parameter_without_gradient():
    """As FCOS's, which begins at the second stage; distributed training waits for every gradient."""
    model = TwoBranchSwin(**TINY)
    (model(images(1, 3, 64, 72, dtype=torch.float32))[-1].sum()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_frozen_parameters_get_none():
    model = TwoBranchSwin(**TINY, frozen_stages=1).train()
    sum(out.sum() for out in model(images(1, 3, 64, 72, dtype=torch.float32))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(('patch_embed.', 'stages.0.', 'norm0.')), name


def test_train_and_eval_return_the_model():
    model = TwoBranchSwin(**TINY)
    assert model.eval() is model
    assert model.train() is model


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_checkpointing_changes_nothing(training):
    x = images(2, 3, 72, 100)
    results = []
    for with_cp in (False, True):
        _, model = twins(own=dict(low_ratios=0.3, prune_ratios=0.2), with_cp=with_cp)
        results.append(run(model, x, training))
    (outs, gradients), (kept_outs, kept_gradients) = results
    for found, expected in zip(kept_outs, outs, strict=True):
        assert torch.equal(found, expected)
    for name, gradient in gradients.items():
        assert_same(kept_gradients[name], gradient, 1e-12, name)


def test_ratios_sampled_after_the_forward_do_not_reach_its_recomputation():
    _, model = twins(with_cp=True)
    _, twin = twins()
    x = images(1, 3, 64, 64)
    for candidate in (model, twin):
        candidate.train()
        candidate.sample_ratios(0.5, 0.25)
        torch.manual_seed(0)
        loss = sum(out.square().sum() for out in candidate(x))
        candidate.sample_ratios(0.0, 0.0)
        loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert_same(parameter.grad, other.grad, 1e-11, name)


def worst_error(outs, reference: tuple[torch.Tensor, ...]) -> float:
    pairs = zip(outs, reference, strict=True)
    return max(((out.float() - wanted).norm() / wanted.norm()).item() for out, wanted in pairs)


def test_autocast_is_as_close_to_float32_as_stock_is():
    stock, ours = twins(torch.float32, embed_dims=32, window_size=7, drop_path_rate=0.0)
    ours.set_ratios(0.5)
    x = images(2, 3, 112, 137, dtype=torch.float32)
    with torch.no_grad():
        stock.eval()
        reference = stock(x)
    for training in (True, False):
        stock.train(training), ours.train(training)
        with torch.set_grad_enabled(training), torch.autocast('cpu', torch.bfloat16):
            stock_error, own_error = (worst_error(model(x), reference) for model in (stock, ours))
        assert own_error <= 1.1 * stock_error + 1e-4


def test_gradients_under_autocast_are_as_close_to_float32_as_those_of_stock():
    stock, ours = twins(torch.float32, embed_dims=32, window_size=7, drop_path_rate=0.0)
    ours.set_ratios(0.5)
    x = images(2, 3, 112, 137, dtype=torch.float32)
    _, reference = run(stock, x, training=True)
    totals = []
    for model in (stock, ours):
        with torch.autocast('cpu', torch.bfloat16):
            _, gradients = run(model, x, training=True)
        totals.append(sum((gradients[name] - wanted).norm() / wanted.norm() for name, wanted in reference.items()))
    assert totals[1] <= 1.1 * totals[0]


def test_pure_bfloat16_trains_and_is_close_to_float32():
    """Stock fails here: its mask is float32."""
    stock, ours = twins(torch.float32, spread=0.05, embed_dims=32, window_size=7, drop_path_rate=0.0)
    ours.set_ratios(0.5)
    x = images(1, 3, 112, 137, dtype=torch.float32)
    stock.eval()
    with torch.no_grad():
        reference = stock(x)
    ours.to(torch.bfloat16)
    outs, gradients = run(ours, x.bfloat16(), training=True)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    ours.eval()
    with torch.no_grad():
        inferred = ours(x.bfloat16())
    for found in (outs, inferred):
        assert all(out.dtype == torch.bfloat16 for out in found)
        assert worst_error(found, reference) < 3e-2


def test_one_model_serves_several_types_and_inference_mode():
    """What is cached by size must not tie the model to the type or mode it was first used in."""
    _, model = twins(own=dict(low_ratios=0.4))
    x = images(1, 3, 60, 68)
    with torch.inference_mode():
        expected = model.eval()(x)
    run(model, x, training=True)
    model.float()
    run(model, x.float(), training=True)
    for found, wanted in zip(model.double().eval()(x), expected, strict=True):
        assert_same(found.detach(), wanted, 1e-5, 'after float32')


def test_caches_are_bounded_and_not_saved():
    from mixaq_mmdet.models.stage_windows import CACHED_GRIDS, cached_grid

    model = TwoBranchSwin(**TINY, low_ratios=0.4).eval()
    names = set(model.state_dict())
    with torch.no_grad():
        for width in range(64, 64 + 4 * 40, 4):
            model(torch.ones(1, 3, 32, width))
    assert len(cached_grid.kept) == CACHED_GRIDS
    assert set(model.state_dict()) == names


def test_copies_after_a_training_step_are_independent():
    _, model = twins(own=dict(low_ratios=0.4))
    x = images(1, 3, 64, 64)
    run(model, x, training=True)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        expected = model.eval()(x)[0]
        assert torch.equal(duplicate.eval()(x)[0], expected)
        torch.nn.init.zeros_(duplicate.patch_embed.projection.weight)
        duplicate.set_ratios(0.9)
        assert torch.equal(model(x)[0], expected)
        assert model.low_ratios[0] == 0.4


def test_moving_averages_follow_the_low_norms():
    model = TwoBranchSwin(**TINY, low_ratios=0.4)
    average = ExponentialMovingAverage(model, momentum=0.5)
    average.update_parameters(model)
    randomise(model)
    average.update_parameters(model)
    name = 'stages.0.blocks.0.norm1_low.weight'
    expected = 0.5 + 0.5 * model.state_dict()[name]
    torch.testing.assert_close(average.module.state_dict()[name], expected)
    x = images(1, 3, 64, 64, dtype=torch.float32)
    assert average.eval()(x)[0].shape == model.eval()(x)[0].shape


def train_rank(rank: int) -> torch.Tensor:
    """The parameters after steps in which branches of blocks are empty, and different images on each rank."""
    torch.manual_seed(0)
    model = TwoBranchSwin(
        embed_dims=8, depths=(1, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0,), window_size=4
    )
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    for low, prune in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.3)):
        model.sample_ratios(low, prune)
        sum(out.square().mean() for out in parallel(torch.randn(1, 3, 40, 48))).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    ('side', 'out_indices', 'trained'), [(16, (0, 1), False), (64, (0, 1), True), (64, (0,), False)]
)
def test_the_low_branch_counts_as_trained_only_if_a_window_ran_in_it(side, out_indices, trained):
    """0.3 of one window are none, and stages behind the last output do not run."""
    tiny = dict(embed_dims=8, depths=(1, 2), num_heads=(1, 2), strides=(4, 2), window_size=4, out_indices=out_indices)
    model = TwoBranchSwin(**tiny, quant=dict(method='LSQ', w_bits=4, a_bits=4))
    for quantizer in [module for module in model.modules() if isinstance(module, Quantizer)]:
        quantizer.mark_calibrated()
    model.sample_ratios([0.0, 0.3])
    model.train()(images(1, 3, side, side, dtype=torch.float32))
    assert bool(model.low_trained) == trained


def test_two_ranks_train_without_find_unused_parameters(tmp_path):
    first, second = on_two_ranks(train_rank, tmp_path)
    assert torch.equal(first, second)
