"""Outlines of the shape families and their rasterised masks."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .fields import pick
from .styles import Style

SUBPIXEL_BITS = 4
MASK_LEVEL = 128


def round_corners(points: np.ndarray, amount: float, rounds: int = 3) -> np.ndarray:
    """Chaikin corner cutting of a closed (n, 2) polygon; `amount` in [0, 0.25] of each edge in the first round."""
    for _ in range(rounds):
        if amount <= 0.01:
            return points
        following = np.roll(points, -1, axis=0)
        cut = np.stack([points + amount * (following - points), following - amount * (following - points)], axis=1)
        points = cut.reshape(-1, 2)
        amount = 0.25
    return points


def ellipse(aspect: float, radius: float = 1.0, corners: int = 48) -> np.ndarray:
    turn = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([radius * np.cos(turn), radius * aspect * np.sin(turn)], axis=1)


def disc(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    return [ellipse(pick(rng, style.disc_aspect))]


def box(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    aspect = pick(rng, style.box_aspect)
    corners = np.array([[-1, -aspect], [1, -aspect], [1, aspect], [-1, aspect]], dtype=np.float64)
    return [round_corners(corners, pick(rng, style.box_rounding))]


def triangle(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    height = 2 * pick(rng, style.triangle_height) * 0.87
    lean = pick(rng, style.triangle_lean)
    corners = np.array([[-1, -height / 3], [1, -height / 3], [lean, 2 * height / 3]])
    return [round_corners(corners, pick(rng, (0.0, 0.12)))]


def star(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    points = int(rng.choice(style.star_points))
    inner = pick(rng, style.star_inner)
    turn = np.arange(2 * points) * (np.pi / points)
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return [round_corners(np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1), pick(rng, (0.0, 0.1)))]


def ring(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    aspect = pick(rng, style.ring_aspect)
    return [ellipse(aspect), ellipse(aspect, pick(rng, style.ring_hole))]


def cross(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    arm = pick(rng, (0.24, 0.4))
    x = np.array([arm, arm, -arm, -arm, -1, -1, -arm, -arm, arm, arm, 1, 1])
    y = np.array([arm, 1, 1, arm, arm, -arm, -arm, -1, -1, -arm, -arm, arm])
    corners = np.stack([x, y], axis=1)
    return [round_corners(corners, pick(rng, (0.0, 0.1)))]


def stick(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    half = pick(rng, (0.06, 0.14))
    bend = pick(rng, (-0.25, 0.25))
    along = np.linspace(-1, 1, 9)
    centre = bend * (1 - along**2)
    upper = np.stack([along, centre + half], axis=1)
    lower = np.stack([along, centre - half], axis=1)[::-1]
    return [np.concatenate([upper, lower])]


def blob(rng: np.random.Generator, style: Style) -> list[np.ndarray]:
    turn = np.arange(40) * (2 * np.pi / 40)
    radius = np.ones(40)
    for waves in (2, 3, 4):
        radius = radius + pick(rng, (0.06, 0.2)) * np.cos(waves * turn + pick(rng, (0, 2 * np.pi)))
    return [np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)]


OUTLINES = {f.__name__: f for f in (disc, box, triangle, star, ring, cross, stick, blob)}


def polygon_area(points: np.ndarray) -> float:
    following = np.roll(points, -1, axis=0)
    return abs(float((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())) / 2


@dataclass
class Figure:
    """A shape of known area, turned and sheared, not yet placed. `contours`: (n, 2) x, y in pixels around 0."""

    contours: list[np.ndarray]
    angle: float
    area: float

    @property
    def half_extent(self) -> np.ndarray:
        return np.abs(self.contours[0]).max(axis=0)


def make_figure(rng: np.random.Generator, style: Style, shape: str, area: float) -> Figure:
    """Draw the proportions and the pose of one object of `area` pixels."""
    contours = OUTLINES[shape](rng, style)
    angle = pick(rng, (0.0, 2 * np.pi))
    shear = pick(rng, (-style.shear, style.shear))
    cosine, sine = np.cos(angle), np.sin(angle)
    pose = np.array([[1.0, shear], [0.0, 1.0]]) @ np.array([[cosine, sine], [-sine, cosine]])
    own_area = polygon_area(contours[0]) - sum(polygon_area(hole) for hole in contours[1:])
    scale = np.sqrt(area / own_area)
    return Figure([contour @ pose * scale for contour in contours], angle, area)


@dataclass
class Stamp:
    """A rasterised figure: `alpha` (h, w) uint8 whose upper left pixel is (top, left) of the canvas."""

    alpha: np.ndarray
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def mask(self) -> np.ndarray:
        return self.alpha >= MASK_LEVEL


def stamp_figure(figure: Figure, centre: tuple[float, float], height: int, width: int) -> Stamp | None:
    """Rasterise with smooth edges; None where nothing falls on the canvas. `centre` is (x, y)."""
    points = [contour + np.asarray(centre) for contour in figure.contours]
    low = np.maximum(np.floor(points[0].min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(points[0].max(axis=0)).astype(int) + 2, [width, height])
    if (high - low < 1).any():
        return None
    alpha = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    fixed = [np.rint((contour - low) * (1 << SUBPIXEL_BITS)).astype(np.int32) for contour in points]
    cv2.fillPoly(alpha, fixed, 255, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return Stamp(alpha, int(low[1]), int(low[0]))
