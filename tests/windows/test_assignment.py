"""Counts, order and rows of the branches, against slow references."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixaq_mmdet.windows.assignment import TierCounts, assign, rank_windows, tier_counts
from mixaq_mmdet.windows.geometry import kind_regions, region_ids, shift_mask, window_grid

quick = settings(max_examples=40, deadline=None)
hundred = st.integers(0, 100)


@st.composite
def problems(draw):
    window = draw(st.integers(2, 5))
    shift = draw(st.sampled_from([0, window // 2]))
    height, width = draw(st.integers(1, 17)), draw(st.integers(1, 17))
    batch = draw(st.integers(1, 3))
    low = draw(hundred)
    prune = draw(st.integers(0, 100 - low))
    run = draw(st.sampled_from([None, 1, 2, 5]))
    grid = window_grid(height, width, window, shift)
    scores = torch.rand(batch, len(grid.rows), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return grid, scores, tier_counts(len(grid.rows), low / 100, prune / 100), run, (window, shift)


@given(st.integers(1, 5000), hundred, hundred)
def test_counts_are_exact_and_nested(windows, low, prune):
    if low + prune > 100:
        low, prune = 100 - low, 100 - prune
    counts = tier_counts(windows, low / 100, prune / 100)
    assert sum(counts) == windows
    assert min(counts) >= 0
    assert counts.pruned == windows * prune // 100
    assert counts.pruned + counts.low == windows * (prune + low) // 100
    if low:
        smaller = tier_counts(windows, (low - 1) / 100, prune / 100)
        assert smaller.low <= counts.low


@pytest.mark.parametrize('windows', [10, 20, 30, 100, 330])
def test_no_window_is_lost_to_floating_point(windows):
    assert tier_counts(windows, 0.8) == TierCounts(windows // 5, windows * 4 // 5, 0)


@pytest.mark.parametrize(('low', 'prune'), [(-0.1, 0.0), (0.6, 0.5), (0.0, 1.2)])
def test_impossible_ratios_are_refused(low, prune):
    with pytest.raises(ValueError, match=r'low_ratio.*prune_ratio.*lower one'):
        tier_counts(10, low, prune)


def test_ties_keep_the_order_of_the_grid():
    scores = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]])
    assert rank_windows(scores).tolist() == [[1, 3, 0, 2, 4]]
    assert rank_windows(torch.zeros(2, 300)).tolist() == [list(range(300))] * 2


def test_float64_scores_tie_like_float32_ones():
    scores = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert rank_windows(scores).tolist() == [[0, 1]]


def test_blank_windows_come_last_whatever_they_score():
    scores = torch.tensor([[5.0, 9.0, 1.0, 9.0]])
    blank = torch.tensor([[False, True, False, True]])
    assert rank_windows(scores, blank).tolist() == [[0, 2, 1, 3]]
    assert rank_windows(-scores, blank).tolist() == [[2, 0, 1, 3]]


@quick
@given(problems())
def test_each_branch_gets_the_rows_of_its_windows(problem):
    grid, scores, counts, run_size, _ = problem
    order = rank_windows(scores)
    assignment = assign(order, counts, grid, len(scores), run_size)
    length = grid.height * grid.width

    def rows_of(ranks: slice) -> list[int]:
        rows = [grid.rows[windows] + image * length for image, windows in enumerate(order[:, ranks])]
        real = [grid.real[windows] for windows in order[:, ranks]]
        return torch.cat([row[kept] for row, kept in zip(rows, real, strict=True)]).sort().values.tolist()

    high = torch.cat([run.rows[: run.high_tokens] for run in assignment.runs] or [torch.empty(0)])
    low = torch.cat([run.rows[run.high_tokens :] for run in assignment.runs] or [torch.empty(0)])
    assert high.sort().values.tolist() == rows_of(slice(0, counts.high))
    assert low.sort().values.tolist() == rows_of(slice(counts.high, counts.high + counts.low))


@quick
@given(problems())
def test_runs_are_consistent(problem):
    grid, scores, counts, run_size, _ = problem
    batch, tokens = len(scores), grid.rows.shape[1]
    runs = assign(rank_windows(scores), counts, grid, batch, run_size).runs
    assert sum(run.windows for run in runs) == batch * (counts.high + counts.low)
    assert sum(run.high_windows for run in runs) == batch * counts.high
    sizes = [run.windows for run in runs]
    if sizes:
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 1.5 * (run_size or max(sizes)) + 1
    for run in runs:
        assert [start for start, _, _ in run.segments] == [0, *(stop for _, stop, _ in run.segments[:-1])]
        assert run.segments[-1].stop == run.windows
        assert (run.slots is None) == (not grid.padded)
        slots = torch.arange(run.windows * tokens) if run.slots is None else run.slots
        assert len(slots) == len(run.rows)
        assert slots.max() < run.windows * tokens
        assert (slots < run.high_windows * tokens).sum() == run.high_tokens


@quick
@given(problems())
def test_every_slot_holds_the_token_and_the_mask_of_its_window(problem):
    grid, scores, counts, run_size, (window, shift) = problem
    tokens = window**2
    runs = assign(rank_windows(scores), counts, grid, len(scores), run_size).runs
    reference = shift_mask(region_ids(grid.height, grid.width, window, shift))
    masks = shift_mask(kind_regions(window, shift))
    window_of_row = torch.full((grid.height * grid.width,), -1)
    for number, (rows, real) in enumerate(zip(grid.rows, grid.real, strict=True)):
        window_of_row[rows[real]] = number
    for run in runs:
        slots = torch.arange(run.windows * tokens) if run.slots is None else run.slots
        number = window_of_row[run.rows % (grid.height * grid.width)]
        assert torch.equal(grid.rows[number, slots % tokens], run.rows % (grid.height * grid.width))
        for start, stop, kind in run.segments:
            inside = (slots // tokens >= start) & (slots // tokens < stop)
            assert all(torch.equal(reference[n], masks[kind]) for n in number[inside].unique())


def test_without_an_order_all_windows_are_taken_once():
    grid = window_grid(9, 11, 4, 2)
    (run,) = assign(None, tier_counts(len(grid.rows), 0.0), grid, batch=2).runs
    assert torch.equal(run.rows.sort().values, torch.arange(2 * 9 * 11))


def test_if_all_windows_are_pruned_nothing_runs():
    grid = window_grid(8, 8, 4, 0)
    order = torch.arange(4).unsqueeze(0)
    assert assign(order, tier_counts(4, 0.0, 1.0), grid, batch=1).runs == ()
