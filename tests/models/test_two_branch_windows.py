"""What ranking and pruning do to windows, on the running backbone."""

import pytest
import torch
from stock_twin import TINY, assert_same, images, randomise, twins

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.windows.assignment import rank_windows, tier_counts
from mixaq_mmdet.windows.geometry import partition, reverse, window_rows

WINDOW = TINY['window_size']


def backbone(**own) -> TwoBranchSwin:
    model = randomise(TwoBranchSwin(**{**TINY, **own}), spread=0.2).double()
    return model.eval()


def block_calls(model: TwoBranchSwin, x: torch.Tensor) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """(stage, block, input, output) of every block in one inference."""
    calls, hooks = [], []
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            hooks.append(
                block.register_forward_hook(
                    lambda _, args, out, i=i, j=j: calls.append((i, j, args[0].clone(), out.clone()))
                )
            )
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize('size', [(64, 64), (72, 100)], ids=str)
@pytest.mark.parametrize('low', [0.0, 0.3])
def test_pruning_leaves_exactly_the_lowest_ranked_windows_untouched(low, size):
    model = backbone(prune_ratios=[0.5, 0.3, 0.25, 0.5, 0.5], low_ratios=low)
    with model.record_windows() as records:
        calls = block_calls(model, images(2, 3, *size))
    for stage, number, x, out in calls:
        record = records[stage]
        odd = number % 2
        grid = record.shifted if odd else record.regular
        pruned = record.counts[number // 2].pruned
        rows = window_rows(*record.size, WINDOW, odd * WINDOW // 2)
        untouched = (x == out).all(-1)
        for image in range(2):
            expected = torch.zeros(x.shape[1], dtype=torch.bool)
            for window in grid.order[image, len(rows) - pruned :]:
                expected[rows[window][rows[window] >= 0]] = True
            assert torch.equal(untouched[image], expected), (stage, number)


def test_ranking_follows_the_stream_that_enters_the_stage():
    """The second block of a pair, and the second pair, are ranked by the first block's input."""
    model = backbone(low_ratios=0.5)
    with model.record_windows() as records:
        calls = block_calls(model, images(2, 3, 72, 100))
    for stage, number, x, _ in calls:
        if number == 0:
            record = records[stage]
            magnitude = x.abs().mean(-1).view(2, *record.size)
            for shift, ranking in ((0, record.regular), (WINDOW // 2, record.shifted)):
                scores = partition(magnitude, WINDOW, shift).square().sum(-1).sqrt().float()
                assert torch.equal(ranking.order, rank_windows(scores))


def test_records_tell_counts_and_close_with_the_context():
    model = backbone(low_ratios=0.4, prune_ratios=0.2)
    x = images(1, 3, 64, 64)
    with torch.no_grad(), model.record_windows() as records:
        model(x)
        model(x)
    assert [record.stage for record in records] == [0, 1, 2, 3] * 2
    assert records[0].counts == (tier_counts(16, 0.4, 0.2),)
    assert len(records[2].counts) == 2
    with torch.no_grad():
        model(x)
    assert len(records) == 8
    assert not any(tensor.requires_grad for record in records for tensor in record.regular)


def test_records_rank_even_where_no_ratio_needs_it():
    model = backbone()
    with torch.no_grad(), model.record_windows() as records:
        model(images(1, 3, 64, 64))
    assert records[0].regular.order.shape == (1, 16)


@pytest.mark.parametrize('importance', ['L2', 'Std', 'Random', dict(type='L2', reverse=True)], ids=str)
def test_an_image_does_not_depend_on_its_batch_mates(importance):
    """Images of three sizes padded with zeros to one, as mmdet does; the smallest leaves whole windows blank."""
    model = backbone(prune_ratios=0.4, low_ratios=0.2, importance=importance)
    batch = images(3, 3, 128, 160)
    batch[1, :, 60:] = 0
    batch[1, :, :, 70:] = 0
    batch[2, :, :, 130:] = 0
    with torch.no_grad():
        together = model(batch)
        for image in range(3):
            alone = model(batch[image : image + 1])
            for found, expected in zip(together, alone, strict=True):
                assert_same(found[image : image + 1], expected, 1e-11, f'image {image}')


@pytest.mark.parametrize('importance', ['L2', 'Random', dict(type='Std', reverse=True)], ids=str)
def test_windows_of_pure_padding_are_pruned_first(importance):
    model = backbone(importance=importance)
    x = images(2, 3, 128, 128)
    x[0, :, 64:] = 0
    with torch.no_grad(), model.record_windows() as records:
        model(x)
    for record in records[:3]:
        blank = record.regular.blank
        assert blank[0].sum() == blank.shape[1] // 2
        assert not blank[1].any()
        last = record.regular.order[0, blank.shape[1] // 2 :]
        assert torch.equal(last, last.sort().values), 'blank windows tie, so they keep the order of the grid'
        assert blank[0, last].all()


def test_importance_changes_what_is_pruned():
    x = images(1, 3, 64, 64)
    outs = []
    specs = ['L2', 'Std', 'Random', dict(type='Random', seed=1), dict(type='L2', reverse=True)]
    for importance in specs:
        with torch.no_grad():
            outs.append(backbone(prune_ratios=0.5, importance=importance)(x)[0])
    for i, out in enumerate(outs):
        assert all(not torch.equal(out, other) for other in outs[:i]), specs[i]


def test_all_windows_pruned_is_the_identity_in_every_block():
    model = backbone(prune_ratios=1.0)
    for _, _, x, out in block_calls(model, images(1, 3, 72, 100)):
        assert torch.equal(x, out)


def test_branches_have_their_own_norms():
    """With other low norms exactly the low windows of the first block change."""
    model = backbone(low_ratios=0.5)
    x = images(1, 3, 64, 64)
    with model.record_windows() as records:
        before = block_calls(model, x)[0][3]
    with torch.no_grad():
        model.stages[0].blocks[0].norm1_low.weight.mul_(2)
    after = block_calls(model, x)[0][3]
    low = torch.zeros(1, 16, WINDOW**2)
    low[0, records[0].regular.order[0, 8:]] = 1
    changed = (before != after).any(-1).view(1, 16, 16)
    assert torch.equal(changed, reverse(low, 16, 16, WINDOW).bool())


def test_a_ratio_that_rounds_to_no_window_is_ratio_zero():
    """Stage 4 of a small input is one window, of which 0.9 are none."""
    model = backbone()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        model.set_ratios(low=[0, 0, 0, 0, 0.9], prune=[0, 0, 0, 0, 0.1 - 0.01])
        for found, expected in zip(model(x), plain, strict=True):
            assert_same(found, expected, 1e-12, 'output')


def test_stock_and_two_branch_share_the_window_grid_of_padded_maps():
    stock, ours = twins(own=dict(prune_ratios=[0.0, 0.0, 0.0, 0.0, 1.0]))
    x = images(1, 3, 57, 73)
    stock.eval(), ours.eval()
    with torch.no_grad():
        for found, expected in zip(ours(x)[:3], stock(x)[:3], strict=True):
            assert_same(found, expected, 1e-11, 'stages before the pruned one')
