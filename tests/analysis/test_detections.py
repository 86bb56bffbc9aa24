"""Labels of detections: none covers another, each stays in its panel and as near to its box as there is room."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.structures import InstanceData

from mixaq_mmdet.analysis.detections import Area, draw_detections, free_places

CLASSES = ('box', 'disc')


def drawn(boxes, scores=None, threshold=0.5, size=(96, 128)):
    """The figure of one model's detections."""
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    scores = torch.linspace(0.9, 0.6, len(boxes)) if scores is None else torch.tensor(scores)
    labels = torch.arange(len(boxes)) % 2
    figure = Figure()
    found = InstanceData(bboxes=boxes, scores=scores, labels=labels)
    draw_detections(figure, np.zeros((*size, 3)), {'float': found, 'this model': found}, CLASSES, threshold)
    figure.draw_without_rendering()
    return figure


@pytest.mark.parametrize('number', [6, 25])
def test_labels_of_boxes_on_one_place_do_not_cover_each_other(number):
    figure = drawn([[20.0, 30.0, 60.0, 70.0]] * number)
    for axis in figure.axes:
        panel = axis.get_window_extent()
        assert axis.get_xlim() == (-0.5, 127.5), 'lines to far labels leave the panel as it is'
        areas = [text.get_bbox_patch().get_window_extent() for text in axis.texts]
        assert len(areas) == number
        assert not any(a.overlaps(b) for a, b in combinations(areas, 2))
        for area in areas:
            assert panel.x0 - 2 <= area.x0 <= area.x1 <= panel.x1 + 2
            assert panel.y0 - 2 <= area.y0 <= area.y1 <= panel.y1 + 2


def test_a_lonely_label_sits_on_its_box():
    figure = drawn([[40.0, 40.0, 100.0, 80.0]])
    text, axis = figure.axes[0].texts[0], figure.axes[0]
    x, y = text.get_position()
    assert (x, y) == pytest.approx((40, 40), abs=2)
    assert text.get_text() == 'box 0.90'
    assert not axis.lines


def test_only_boxes_above_the_threshold_are_drawn():
    figure = drawn([[10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 90.0, 90.0]], scores=[0.4, 0.8])
    assert [text.get_text() for text in figure.axes[0].texts] == ['disc 0.80']
    assert figure.axes[0].get_title() == 'float: 1 detections, score >= 0.5'
    assert len(figure.axes[0].patches) == 1
    assert not drawn([]).axes[0].texts


def test_a_full_panel_leaves_labels_out():
    panel = Area(0, 0, 30, 20)
    places = free_places([(30, 10)] * 3, [Area(5, 5, 10, 10)] * 3, panel)
    assert places.count(None) == 1
    first, second = (place for place in places if place is not None)
    assert not first.meets(second)
