"""Window maps show what the backbone did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tiny_backbone import backbone, images

from mixaq_mmdet.analysis.window_map import HIGH, LOW, PRUNED, draw_window_map, overlay, panels, score_map, tier_map


@pytest.fixture(scope='module')
def records():
    model = backbone(low_ratios=0.5, prune_ratios=0.2)
    with torch.no_grad(), model.record_windows() as found:
        model(images(1)[0])
    return list(found)


@pytest.mark.parametrize('shifted', [False, True])
def test_tiers_hold_the_windows_the_ranking_gave_them(records, shifted):
    record = records[0]
    tiers = tier_map(record, 0, shifted)
    assert tiers.shape == record.size
    assert set(np.unique(tiers)) == {HIGH, LOW, PRUNED}
    scores, blank = score_map(record, shifted), record.shifted.blank if shifted else record.regular.blank
    assert not blank.any()
    assert scores[tiers == HIGH].min() >= scores[tiers == LOW].max()
    assert scores[tiers == LOW].min() >= scores[tiers == PRUNED].max()


def test_shifted_grid_is_unrolled_over_the_image(records):
    regular, shifted = (panel.windows for panel in panels(records, (2, 1))[:2])
    assert (regular[0, :4] == regular[0, 0]).all()
    assert regular[0, 4] != regular[0, 3]
    assert shifted[0, 1] != shifted[0, 2]  # the first border lies half a window in


def test_an_odd_last_block_has_no_shifted_panel(records):
    assert [(p.stage, p.shifted) for p in panels(records, (2, 1))] == [(0, False), (0, True), (1, False)]


def test_overlay_keeps_high_windows_and_darkens_pruned_ones(records):
    panel = panels(records, (2, 1))[0]
    image = np.full((50, 67, 3), 0.5)
    picture = overlay(image, panel, lines=False)
    tiers = panel.tiers.repeat(4, 0).repeat(4, 1)[:50, :67]
    assert (picture[tiers == HIGH] == 0.5).all()
    assert (picture[tiers == PRUNED] < 0.2).all()


def test_every_pair_gets_a_column(records):
    figure = Figure()
    draw_window_map(figure, np.zeros((50, 67, 3)), records, (2, 1))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ['stage 1, pair 1, regular', 'stage 2, pair 1, regular', 'stage 1, pair 1, shifted']
