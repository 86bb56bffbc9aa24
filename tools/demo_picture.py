"""The picture that ``make demo`` ends with: the same images through three detectors, low windows marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmcv.ops import nms

from mixaq_mmdet.analysis.detections import draw_boxes
from mixaq_mmdet.analysis.window_map import overlay, panels
from mixaq_mmdet.models.stage_windows import StageRecord
from mixaq_mmdet.reporting.figures import save_figure

SCORE_THRESHOLD = 0.6
SAME_OBJECT = 0.5  # IoU of boxes: only the most certain one is drawn
PANEL_INCHES = 2.9
HEAD_INCHES, FOOT_INCHES = 0.85, 0.55
COLOURS = 128  # of the file, which is half as large as one in full colour


class Column(NamedTuple):
    """One detector.

    Attributes:
        title, figures: the two lines above its images; what it is, and how it does.
        predictions: mmdet's ``pred_instances`` of each image.
        windows: of each image the records of its stages; empty where no window is to be shown.
    """

    title: str
    figures: str
    predictions: Sequence[Any]
    windows: Sequence[list[StageRecord]] = ()


def certain(predictions: Any) -> list[int]:
    """Indices of the detections to show: certain ones, and one for each object."""
    kept = nms(predictions.bboxes, predictions.scores, SAME_OBJECT)[1].tolist()
    return [index for index in kept if predictions.scores[index] >= SCORE_THRESHOLD]


def draw(
    figure: Any, images: Sequence[np.ndarray], columns: Sequence[Column], classes: Sequence[str], foot: str
) -> None:
    """A column for each detector, a row for each of the (H, W, 3) RGB images in [0, 1]."""
    width, height = PANEL_INCHES * len(columns), PANEL_INCHES * len(images) + HEAD_INCHES + FOOT_INCHES
    figure.set_size_inches(width, height)
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    figure.subplots_adjust(
        left=0.005, right=0.995, bottom=FOOT_INCHES / height, top=1 - HEAD_INCHES / height, wspace=0.02, hspace=0.02
    )
    for place, column in enumerate(columns):
        middle = (place + 0.5) / len(columns)
        figure.text(middle, 1 - 0.25 / height, column.title, ha='center', fontsize=12, fontweight='bold')
        figure.text(middle, 1 - 0.56 / height, column.figures, ha='center', va='center', fontsize=9.5, linespacing=1.4)
        for row, image in enumerate(images):
            shown = overlay(image, panels(column.windows[row], (1,))[0]) if column.windows else image
            axes[row, place].imshow(shown)
            axes[row, place].autoscale(False)
            axes[row, place].axis('off')
    figure.text(0.5, FOOT_INCHES / 2 / height, foot, ha='center', va='center', fontsize=9.5, linespacing=1.4)
    figure.draw_without_rendering()  # fixes where the panels lie, which labels are placed by
    for place, column in enumerate(columns):
        for row, predictions in enumerate(column.predictions):
            draw_boxes(axes[row, place], predictions.numpy(), certain(predictions), classes)


def write(path: Path, *arguments: Any) -> Path:
    """Draw and save; fewer colours make a file that a README can show."""
    from PIL import Image

    save_figure(path, lambda figure: draw(figure, *arguments))
    with Image.open(path) as picture:
        reduced = picture.convert('RGB').quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)
    return path
