"""Small pieces every drawing module uses: ranges, smooth noise, soft blur, colours.

Pixels are float64 until they are rounded to bytes: results of different vector units differ by about 1e-16 there,
which practically never moves a byte, while float32 sums would.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])


def pick(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A uniform draw between the two bounds."""
    return float(rng.uniform(bounds[0], bounds[1]))


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """(height, width) noise of mean about 0 and spread about 1 whose blobs are `cell` pixels wide."""
    rows = max(int(np.ceil(height / cell)) + 2, 3)
    cols = max(int(np.ceil(width / cell)) + 2, 3)
    grid = rng.uniform(-1.7, 1.7, (rows, cols))
    full = cv2.resize(grid, (int(np.ceil(cols * cell)), int(np.ceil(rows * cell))), interpolation=cv2.INTER_CUBIC)
    top, left = int(cell // 2), int(cell // 2)
    return full[top : top + height, left : left + width]


def soft_blur(plane: np.ndarray, radius: float) -> np.ndarray:
    """Two box filters, close to a Gaussian; the cost does not grow with the radius."""
    side = 2 * max(round(radius), 1) + 1
    once = cv2.blur(plane, (side, side), borderType=cv2.BORDER_CONSTANT)
    return cv2.blur(once, (side, side), borderType=cv2.BORDER_CONSTANT)


def hsv_colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) RGB in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value))


def random_colour(rng: np.random.Generator, hue: tuple, saturation: tuple, value: tuple) -> np.ndarray:
    return hsv_colour(pick(rng, hue), pick(rng, saturation), pick(rng, value))


def luma(colour: np.ndarray) -> float:
    return float((colour * LUMA).sum())


def contrasting_pair(
    rng: np.random.Generator, hue: tuple, saturation: tuple, value: tuple, contrast: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours whose brightness differs by about `contrast`."""
    first = random_colour(rng, hue, saturation, value)
    second = random_colour(rng, hue, saturation, value)
    gap = luma(second) - luma(first)
    wanted = contrast if gap >= 0 else -contrast
    if abs(gap) < contrast:
        shift = (wanted - gap) / 2
        first, second = first - shift, second + shift
    return np.clip(first, 0.02, 0.98), np.clip(second, 0.02, 0.98)


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers as broadcastable (height, 1) and (1, width) columns."""
    return np.arange(height, dtype=np.float64)[:, None], np.arange(width, dtype=np.float64)[None, :]
