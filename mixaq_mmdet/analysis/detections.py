"""Detections of two models side by side, their labels placed so that none covers another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixaq_mmdet.reporting.figures import COLOURS

GAP = 1.0  # between labels, in points
CAPTION_INCHES = 0.35


class Area(NamedTuple):
    """An upright rectangle, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def grown(self, margin: float) -> Area:
        """With a margin on all sides."""
        return Area(self.left - margin, self.bottom - margin, self.right + margin, self.top + margin)

    def meets(self, other: Area) -> bool:
        """Whether both cover some place."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def draw_detections(
    figure: Any,
    image: np.ndarray,
    found: dict[str, Any],
    classes: tuple[str, ...],
    threshold: float,
    caption: str = '',
) -> None:
    """One panel for each model; the most certain boxes get the first choice of a place for their label.

    Args:
        image: (H, W, 3) RGB, in the pixels of the boxes.
        found: ``pred_instances`` by the model's name.
        classes: names by label.
        threshold: least score of a box that is drawn.
        caption: a line under the panels.
    """
    aspect = image.shape[0] / image.shape[1]
    foot = CAPTION_INCHES if caption else 0.0
    height = 5 * aspect + 0.4 + foot
    figure.set_size_inches(5 * len(found), height)
    if caption:
        figure.text(0.5, foot / 2 / height, caption, ha='center', va='center', fontsize=9)
    panels = []
    for axis, (name, instances) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        axis.imshow(image)
        axis.autoscale(False)  # a line from a label to its box must not move the panel
        axis.axis('off')
        shown = instances.cpu().numpy()
        kept = sorted((i for i, score in enumerate(shown.scores) if score >= threshold), key=lambda i: -shown.scores[i])
        axis.set_title(f'{name}: {len(kept)} detections, score >= {threshold:g}', fontsize=10)
        panels.append((axis, shown, kept))
    figure.tight_layout(rect=(0, foot / height, 1, 1))
    figure.draw_without_rendering()  # fixes where the panels lie, which labels are placed by
    for axis, shown, kept in panels:
        draw_boxes(axis, shown, kept, classes)


def draw_boxes(axis: Any, shown: Any, kept: Sequence[int], classes: Sequence[str]) -> None:
    """Boxes and labels of the ``kept`` ones of ``shown`` (numpy arrays), over a panel that stays where it is."""
    from matplotlib.patches import Rectangle

    for index in reversed(kept):
        left, top, right, bottom = shown.bboxes[index]
        colour = _colour(int(shown.labels[index]))
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, lw=1.8))
    panel, scale = Area(*axis.get_window_extent().extents), axis.figure.dpi / 72
    texts, sizes, boxes = [], [], []
    for index in kept:
        label = int(shown.labels[index])
        text = axis.text(
            0, 0, f'{classes[label]} {shown.scores[index]:.2f}', fontsize=6.5, va='bottom', ha='left',
            color=_ink(label), bbox={'facecolor': _colour(label), 'alpha': 0.85, 'pad': 0.8, 'lw': 0}, clip_on=True,
        )  # fmt: skip
        extent = text.get_window_extent()
        texts.append(text)
        sizes.append((extent.width + 2 * GAP * scale, extent.height + 2 * GAP * scale))
        (x0, y1), (x1, y0) = axis.transData.transform(shown.bboxes[index].reshape(2, 2))
        boxes.append(Area(x0, y0, x1, y1))
    to_data = axis.transData.inverted()
    for text, box, place in zip(texts, boxes, free_places(sizes, boxes, panel), strict=True):
        if place is None:  # a picture that is full of labels
            text.remove()
            continue
        text.set_position(to_data.transform((place.left + GAP * scale, place.bottom + GAP * scale)))
        if not place.meets(box.grown(2)):  # a line from a far label to the corner of its box
            ends = to_data.transform([(box.left, box.top), (place.left, place.bottom)])
            axis.plot(*ends.T, color=text.get_bbox_patch().get_facecolor(), lw=0.8)


def free_places(sizes: Sequence[tuple[float, float]], boxes: Sequence[Area], panel: Area) -> list[Area | None]:
    """A place inside the panel for each label (width, height): at its box if one is free, or as near as there is one.

    Labels never meet; one that finds no room at all gets None.
    """
    taken: list[Area] = []
    places: list[Area | None] = []
    for size, box in zip(sizes, boxes, strict=True):
        place = next((area for area in _places(*size, box, panel) if not any(map(area.meets, taken))), None)
        places.append(place)
        taken += [] if place is None else [place]
    return places


def _places(width: float, height: float, box: Area, panel: Area) -> Iterator[Area]:
    """Where a label may go: around the corners of its box, outside and inside, then anywhere, the nearest first."""
    rows = (box.top, box.bottom - height, box.top - height, box.bottom)
    corners = [(x, y) for y in rows for x in (box.left, box.right - width)]
    corners += [(x, y) for y in (box.top - height, box.bottom) for x in (box.right, box.left - width)]
    right, top = max(panel.right - width, panel.left), max(panel.top - height, panel.bottom)
    columns = np.arange(panel.left, right + 1e-6, max(width / 4, 1))
    lines = np.arange(panel.bottom, top + 1e-6, max(height / 2, 1))
    elsewhere = [(float(x), float(y)) for x in columns for y in lines]
    elsewhere.sort(key=lambda place: abs(place[0] - box.left) + abs(place[1] - box.top))
    for x, y in [*corners, *elsewhere]:
        x, y = float(np.clip(x, panel.left, right)), float(np.clip(y, panel.bottom, top))
        yield Area(x, y, x + width, y + height)


def _ink(label: int) -> str:
    """What can be read on a label's colour."""
    return 'white' if _colour(label) == '#000000' else 'black'


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)]
