"""The static layout holds the windows that the eager assignment holds, and finds every token again."""

import pytest
import torch

from mixaq_mmdet.windows.assignment import TierCounts, assign
from mixaq_mmdet.windows.geometry import window_grid
from mixaq_mmdet.windows.static import place_windows, static_layout

GRIDS = [(8, 8, 4, 0), (9, 13, 4, 2), (3, 2, 4, 2), (14, 7, 7, 3)]


def orders(batch: int, windows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(windows, generator=generator) for _ in range(batch)])


@pytest.mark.parametrize('ranked', [True, False], ids=['ranked', 'grid order'])
@pytest.mark.parametrize('geometry', GRIDS, ids=str)
def test_kept_windows_are_those_of_the_eager_assignment(geometry, ranked):
    grid = window_grid(*geometry)
    batch, windows = 2, len(grid.rows)
    counts = TierCounts(windows - windows // 2, windows // 4, windows // 2 - windows // 4)
    order = orders(batch, windows) if ranked else None
    run = place_windows(order, static_layout(grid, counts, batch))
    (eager,) = assign(order, counts, grid, batch).runs
    tokens = grid.rows.shape[1]
    rows = run.rows.view(run.windows, tokens)
    real = torch.ones_like(rows, dtype=torch.bool) if run.real is None else run.real
    for of_static, of_eager in (
        (rows[: run.high_windows][real[: run.high_windows]], eager.rows[: eager.high_tokens]),
        (rows[run.high_windows :][real[run.high_windows :]], eager.rows[eager.high_tokens :]),
    ):
        assert sorted(of_static.tolist()) == sorted(of_eager.tolist())
    assert (run.windows, run.high_windows) == (eager.windows, eager.high_windows)
    assert run.high_tokens == run.high_windows * tokens


@pytest.mark.parametrize('geometry', GRIDS, ids=str)
@pytest.mark.parametrize('shares', [(1, 0), (0, 1), (0.5, 0.25), (0, 0)], ids=str)
def test_every_token_comes_back_to_its_place(geometry, shares):
    grid = window_grid(*geometry)
    batch, windows = 3, len(grid.rows)
    high, low = (int(share * windows) for share in shares)
    run = place_windows(orders(batch, windows), static_layout(grid, TierCounts(high, low, windows - high - low), batch))
    stream = torch.arange(batch * grid.height * grid.width)
    taken = stream.index_select(0, run.rows)
    assert torch.equal(torch.cat((taken, stream)).index_select(0, run.back), stream)
    from_windows = int((run.back < len(taken)).sum())
    kept_rows = run.rows if run.real is None else run.rows.view(run.real.shape)[run.real]
    assert from_windows == len(kept_rows)


def test_each_window_knows_its_image_and_its_mask():
    grid = window_grid(9, 13, 4, 2)
    order = orders(2, len(grid.rows))
    run = place_windows(order, static_layout(grid, TierCounts(5, 4, 3), 2))
    expected = [
        (image, int(window)) for part in (slice(5), slice(5, 9)) for image in (0, 1) for window in order[image, part]
    ]
    assert run.images.tolist() == [image for image, _ in expected]
    assert run.kinds.tolist() == [int(grid.kinds[window]) for _, window in expected]
