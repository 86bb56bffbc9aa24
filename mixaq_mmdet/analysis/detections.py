"""Detections of two models side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

PALETTE = ('#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#F0E442')


def draw_detections(
    figure: Any, image: np.ndarray, found: dict[str, Any], classes: tuple[str, ...], threshold: float
) -> None:
    """One panel for each model.

    Args:
        image: (H, W, 3) RGB, in the pixels of the boxes.
        found: ``pred_instances`` by the model's name.
        classes: names by label.
        threshold: least score of a box that is drawn.
    """
    from matplotlib.patches import Rectangle

    aspect = image.shape[0] / image.shape[1]
    figure.set_size_inches(5 * len(found), 5 * aspect + 0.4)
    for axis, (name, instances) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        axis.imshow(image)
        axis.axis('off')
        shown = instances.cpu().numpy()
        kept = [index for index, score in enumerate(shown.scores) if score >= threshold]
        for index in kept:
            left, top, right, bottom = shown.bboxes[index]
            label = int(shown.labels[index])
            colour = PALETTE[label % len(PALETTE)]
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, lw=1.8))
            axis.text(
                left, max(top, 0), f'{classes[label]} {shown.scores[index]:.2f}', fontsize=6.5, va='bottom',
                color='black', bbox={'facecolor': colour, 'alpha': 0.85, 'pad': 0.8, 'lw': 0}, clip_on=True,
            )  # fmt: skip
        axis.set_title(f'{name}: {len(kept)} detections, score >= {threshold:g}', fontsize=10)
    figure.tight_layout()
