"""Corrupted twins of clean pictures: fog, noise, blur, contrast, each in severities 1 (slight) to 5 (severe)."""

from __future__ import annotations

import cv2
import numpy as np

from .fields import smooth_noise

SEVERITIES = (1, 2, 3, 4, 5)
FOG_DENSITY = (0.25, 0.36, 0.47, 0.58, 0.68)
NOISE_DEVIATION = (0.04, 0.07, 0.1, 0.14, 0.18)
BLUR_RADIUS = (1.0, 1.6, 2.3, 3.1, 4.0)
# Up to a radius of 0.5 the kernel is a single pixel.
SMALLEST_BLUR = 0.6
CONTRAST_LEFT = (0.6, 0.45, 0.33, 0.24, 0.17)


def fog(rng: np.random.Generator, picture: np.ndarray, severity: int) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(height, width)
    drift = sum(smooth_noise(rng, height, width, side / 2**octave) / 2**octave for octave in (1, 2, 3))
    veil = np.clip(FOG_DENSITY[severity - 1] * (1.0 + 0.4 * drift), 0.0, 0.95)[..., None]
    return picture * (1.0 - veil) + rng.uniform(0.78, 0.9) * veil


def noise(rng: np.random.Generator, picture: np.ndarray, severity: int) -> np.ndarray:
    deviation = NOISE_DEVIATION[severity - 1]
    return picture + rng.normal(0.0, deviation, picture.shape) * np.sqrt(0.4 + picture)


def blur(rng: np.random.Generator, picture: np.ndarray, severity: int) -> np.ndarray:
    """Out of focus: a disc-shaped kernel whose radius follows the picture's size, down to one that still blurs."""
    full = BLUR_RADIUS[severity - 1]
    radius = full + (full - SMALLEST_BLUR) * (min(picture.shape[:2]) / 256 - 1.0)
    reach = int(np.ceil(radius))
    offset = np.arange(-reach, reach + 1)
    distance = np.sqrt(offset[:, None] ** 2 + offset[None, :] ** 2)
    kernel = np.clip(radius + 0.5 - distance, 0.0, 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def contrast(rng: np.random.Generator, picture: np.ndarray, severity: int) -> np.ndarray:
    mean = picture.mean(axis=(0, 1))
    return (picture - mean) * CONTRAST_LEFT[severity - 1] + mean


# The order numbers the random streams: append, never reorder.
CORRUPTIONS = {f.__name__: f for f in (fog, noise, blur, contrast)}


def corrupt(rng: np.random.Generator, pixels: np.ndarray, kind: str, severity: int) -> np.ndarray:
    """uint8 (h, w, 3) in, uint8 out."""
    changed = CORRUPTIONS[kind](rng, pixels / 255.0, severity)
    return np.rint(np.clip(changed, 0.0, 1.0) * 255.0).astype(np.uint8)
