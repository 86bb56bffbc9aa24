"""Backgrounds: structured, but smoother and lower in contrast than the objects, as in photographs."""

from __future__ import annotations

import cv2
import numpy as np

from .categories import LOOKALIKE_PAIRS, TEXTURES
from .fields import pick, pixel_grid, random_colour, smooth_noise, soft_blur
from .shapes import make_figure, stamp_figure
from .styles import Style
from .textures import draw_texture


def base_colour(rng: np.random.Generator, style: Style) -> np.ndarray:
    return random_colour(rng, style.background_hue, style.background_saturation, style.background_value)


def neighbour_colour(rng: np.random.Generator, colour: np.ndarray, reach: float) -> np.ndarray:
    return np.clip(colour + pick(rng, (-reach, reach)) + rng.uniform(-0.3 * reach, 0.3 * reach, 3), 0.05, 0.95)


def mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(h, w, 3) blend of two (3,) colours by an (h, w) share."""
    return first + (second - first) * share[..., None]


def gradient(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    first = base_colour(rng, style)
    second = neighbour_colour(rng, first, 0.3)
    angle = pick(rng, (0.0, 2 * np.pi))
    rows, columns = pixel_grid(height, width)
    along = np.cos(angle) * (columns / width - 0.5) + np.sin(angle) * (rows / height - 0.5)
    return mix(first, second, np.clip(along + 0.5, 0.0, 1.0))


def horizon(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    wall, ground = base_colour(rng, style), base_colour(rng, style)
    ground = wall + np.clip(ground - wall, -0.28, 0.28)
    rows, columns = pixel_grid(height, width)
    level = pick(rng, (0.25, 0.75)) * height + pick(rng, (-0.12, 0.12)) * (columns - width / 2)
    edge = np.clip((rows - level) / pick(rng, (1.0, 14.0)) + 0.5, 0.0, 1.0)
    depth = 1.0 - 0.18 * np.abs(rows - level) / height
    return mix(wall, ground, edge) * depth[..., None]


def field(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    first = base_colour(rng, style)
    second = neighbour_colour(rng, first, 0.24)
    patches = smooth_noise(rng, height, width, pick(rng, (0.16, 0.5)) * min(height, width))
    return mix(first, second, np.clip(0.5 + 0.5 * patches, 0.0, 1.0))


def planks(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    colour = base_colour(rng, style)
    angle = pick(rng, (0.0, np.pi))
    rows, columns = pixel_grid(height, width)
    across = np.cos(angle) * columns + np.sin(angle) * rows + 2.0 * width
    board = across / (pick(rng, (0.12, 0.3)) * width)
    tones = rng.uniform(-0.06, 0.06, 64)
    tone = tones[np.floor(board).astype(int) % 64]
    gap = np.abs(board - np.floor(board) - 0.5) > 0.5 - pick(rng, (0.02, 0.05))
    return colour + (tone - 0.09 * gap)[..., None]


def weave(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    """A faintly patterned cloth or wall, so that pattern alone does not mean object."""
    colour = base_colour(rng, style)
    texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
    centre = (width / 2, height / 2)
    share = draw_texture(rng, style, texture, (height, width), centre, 0.0, pick(rng, (0.12, 0.4)) * width)
    return mix(colour, neighbour_colour(rng, colour, 0.13), share)


def terrain(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    """Three octaves of noise between two earthy tones."""
    first = base_colour(rng, style)
    second = neighbour_colour(rng, first, 0.3)
    side = min(height, width)
    octaves = [
        smooth_noise(rng, height, width, side * cell) * weight for cell, weight in ((0.4, 1), (0.18, 0.5), (0.08, 0.25))
    ]
    return mix(first, second, np.clip(0.5 + 0.4 * sum(octaves), 0.0, 1.0))


def tiles(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    """Square tiles of slightly different tones, with joints."""
    colour = base_colour(rng, style)
    angle = pick(rng, (0.0, np.pi / 2))
    pitch = pick(rng, (0.14, 0.3)) * min(height, width)
    rows, columns = pixel_grid(height, width)
    u = (np.cos(angle) * columns + np.sin(angle) * rows) / pitch + 32
    v = (np.cos(angle) * rows - np.sin(angle) * columns) / pitch + 32
    tone = rng.uniform(-0.06, 0.06, (64, 64))[np.floor(u).astype(int) % 64, np.floor(v).astype(int) % 64]
    off_joint = np.minimum(np.abs(u - np.rint(u)), np.abs(v - np.rint(v)))
    joint = np.clip(1.5 - off_joint * pitch, 0.0, 1.0)
    return colour + (tone - pick(rng, (0.05, 0.12)) * joint)[..., None]


def spotlit(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    """A pool of light on a plain ground."""
    colour = base_colour(rng, style)
    rows, columns = pixel_grid(height, width)
    x, y = pick(rng, (0.15, 0.85)) * width, pick(rng, (0.15, 0.85)) * height
    reach2 = (pick(rng, (0.35, 0.7)) * min(height, width)) ** 2
    pool = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / reach2)
    return colour * (0.75 + pick(rng, (0.25, 0.5)) * pool)[..., None]


def foliage(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    """Many overlapping leaf-like blobs of neighbouring tones."""
    colour = base_colour(rng, style)
    picture = np.tile(colour, (height, width, 1))
    for _ in range(40):
        area = height * width * pick(rng, (0.006, 0.04))
        figure = make_figure(rng, style, 'blob', area)
        stamp = stamp_figure(figure, (pick(rng, (0, width)), pick(rng, (0, height))), height, width)
        if stamp is not None:
            part = picture[stamp.window]
            part += (neighbour_colour(rng, colour, 0.1) - part) * (stamp.alpha / 255.0)[..., None]
    return cv2.GaussianBlur(picture, (7, 7), 1.5)


GROUNDS = (gradient, horizon, field, planks, weave, terrain, tiles, spotlit, foliage)
KINDS = {ground.__name__: ground for ground in GROUNDS}


def add_relief(rng: np.random.Generator, style: Style, picture: np.ndarray) -> None:
    """Soft brightness noise on two scales."""
    height, width = picture.shape[:2]
    strength = pick(rng, style.background_relief)
    coarse = smooth_noise(rng, height, width, pick(rng, (0.08, 0.25)) * min(height, width))
    fine = smooth_noise(rng, height, width, pick(rng, (0.02, 0.05)) * min(height, width))
    picture += (strength * coarse + 0.35 * strength * fine)[..., None]


def add_clutter(rng: np.random.Generator, style: Style, picture: np.ndarray) -> None:
    """Faint lines, soft patches and faintly textured scraps that stay below the contrast of objects."""
    height, width = picture.shape[:2]
    for _ in range(int(rng.integers(style.clutter_items[0], style.clutter_items[1] + 1))):
        contrast = pick(rng, style.clutter_contrast) * (1 if rng.random() < 0.5 else -1)
        kind = rng.random()
        if kind < 0.4:
            add_line(rng, picture, contrast)
            continue
        area = height * width * 0.012 * float(np.exp(rng.normal(0.0, 0.9)))
        # A scrap must never be a faint, unlabelled member of a category.
        texture, shape = LOOKALIKE_PAIRS[int(rng.integers(len(LOOKALIKE_PAIRS)))] if kind > 0.75 else ('plain', 'blob')
        figure = make_figure(rng, style, shape, max(area, 40.0))
        stamp = stamp_figure(figure, (pick(rng, (0, width)), pick(rng, (0, height))), height, width)
        if stamp is None:
            continue
        alpha = stamp.alpha / 255.0
        if kind < 0.6:
            alpha = soft_blur(alpha, 0.08 * np.sqrt(figure.area))
        elif kind > 0.75:
            size = stamp.alpha.shape
            alpha = alpha * draw_texture(
                rng, style, texture, size, (size[1] / 2, size[0] / 2), figure.angle, np.sqrt(figure.area)
            )
        picture[stamp.window] += contrast * alpha[..., None] * rng.uniform(0.6, 1.0, 3)


def add_line(rng: np.random.Generator, picture: np.ndarray, contrast: float) -> None:
    height, width = picture.shape[:2]
    ends = np.rint(rng.uniform(-0.1, 1.1, (2, 2)) * [width, height] * 16).astype(int)
    drawn = np.zeros((height, width), np.uint8)
    thickness = int(rng.integers(1, max(2, height // 48)))
    cv2.line(drawn, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 255, thickness, cv2.LINE_AA, 4)
    picture += (drawn * (contrast / 255.0))[..., None]


def draw_background(rng: np.random.Generator, style: Style, height: int, width: int) -> np.ndarray:
    """(height, width, 3) RGB float64, roughly in [0, 1]."""
    kind = style.backgrounds[int(rng.integers(len(style.backgrounds)))]
    picture = np.array(KINDS[kind](rng, style, height, width))
    add_relief(rng, style, picture)
    if rng.random() < style.clutter_chance:
        add_clutter(rng, style, picture)
    return np.clip(picture, 0.02, 0.98)
