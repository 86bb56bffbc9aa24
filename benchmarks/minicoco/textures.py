"""Texture families: each gives the share (0..1) of the second colour at every pixel of a stamp."""

from __future__ import annotations

import numpy as np

from .fields import pick, pixel_grid, smooth_noise
from .styles import Style

SHORTEST_PERIOD = 5.0


def crisp(signal: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """A signed signal turned into a two-tone field with an edge about one pixel wide."""
    return np.clip(0.5 + signal * pixels_per_unit, 0.0, 1.0)


def striped(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float, duty: float) -> np.ndarray:
    bend = pick(rng, (-0.6, 0.6)) / max(float(np.abs(v).max()), 1.0)
    phase = pick(rng, (0.0, 1.0))
    wave = np.cos(2 * np.pi * ((u + bend * v * v / 2) / period + phase))
    return crisp(wave - np.cos(np.pi * duty), period / (2 * np.pi))


def checked(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float, duty: float) -> np.ndarray:
    first, second = pick(rng, (0.0, 1.0)), pick(rng, (0.0, 1.0))
    wave = np.sin(2 * np.pi * (u / period + first)) * np.sin(2 * np.pi * (v / period + second))
    return crisp(wave, period / (2 * np.pi))


def dotted(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float, duty: float) -> np.ndarray:
    row = v / (period * 0.87) + pick(rng, (0.0, 1.0))
    row_number = np.floor(row)
    column = u / period + 0.5 * (row_number % 2) + pick(rng, (0.0, 1.0))
    across = (column - np.floor(column) - 0.5) * period
    down = (row - row_number - 0.5) * (period * 0.87)
    radius = period * (0.12 + 0.4 * duty)
    return np.clip(0.5 + radius - np.sqrt(across * across + down * down), 0.0, 1.0)


def mottled(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float, duty: float) -> np.ndarray:
    height, width = u.shape
    noise = smooth_noise(rng, height, width, period * 0.62)
    return crisp(noise + (duty - 0.5), period * 0.3)


def plain(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float, duty: float) -> np.ndarray:
    return np.full(u.shape, 0.15)


def shaded(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, period: float, duty: float) -> np.ndarray:
    reach = max(float(np.abs(u).max()), 1.0)
    return np.clip(0.5 + u / (2 * reach), 0.0, 1.0)


FAMILIES = {f.__name__: f for f in (striped, checked, dotted, mottled, plain, shaded)}


def draw_texture(
    rng: np.random.Generator,
    style: Style,
    texture: str,
    size: tuple[int, int],
    origin: tuple[float, float],
    angle: float,
    diameter: float,
) -> np.ndarray:
    """(h, w) share of the second colour; `origin` is the (x, y) of the object's centre in the stamp."""
    period = max(pick(rng, style.period) * diameter, SHORTEST_PERIOD)
    turn = angle + pick(rng, (-0.5, 0.5)) * np.pi
    rows, columns = pixel_grid(*size)
    y, x = rows - origin[1], columns - origin[0]
    u = np.cos(turn) * x + np.sin(turn) * y
    v = np.cos(turn) * y - np.sin(turn) * x
    return FAMILIES[texture](rng, u, v, period, pick(rng, style.duty))
