"""One scene: background, things with texture, shading and shadows, then light and lens over all of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .backgrounds import draw_background
from .categories import DISTRACTOR
from .fields import contrasting_pair, pick, pixel_grid, smooth_noise, soft_blur
from .layout import Thing, draw_layout
from .styles import Style
from .textures import draw_texture


@dataclass
class Scene:
    """`pixels` (h, w, 3) uint8 RGB; `objects` is a list of (category id, visible (h, w) bool mask)."""

    pixels: np.ndarray
    objects: list[tuple[int, np.ndarray]]


@dataclass
class Light:
    """One light for the whole scene: where it comes from and how hard it is."""

    direction: tuple[float, float]
    shading: float
    bevel: float
    shadow: float


def draw_light(rng: np.random.Generator, style: Style) -> Light:
    angle = pick(rng, (0.0, 2 * np.pi))
    direction = (float(np.cos(angle)), float(np.sin(angle)))
    return Light(direction, pick(rng, style.shading), pick(rng, style.bevel), pick(rng, style.shadow))


def cast_shadow(picture: np.ndarray, thing: Thing, light: Light) -> None:
    """Darken what lies under and beside a thing, away from the light."""
    height, width = picture.shape[:2]
    diameter = np.sqrt(thing.figure.area)
    reach = max(0.09 * diameter, 1.5)
    pad = int(np.ceil(3 * reach)) + 1
    stamp = thing.stamp
    blurred = soft_blur(np.pad(stamp.alpha / 255.0, pad), 0.5 * reach)
    top = stamp.top - pad - round(light.direction[1] * reach)
    left = stamp.left - pad - round(light.direction[0] * reach)
    rows = slice(max(top, 0), min(top + blurred.shape[0], height))
    columns = slice(max(left, 0), min(left + blurred.shape[1], width))
    part = blurred[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    picture[rows, columns] *= (1.0 - light.shadow * part)[..., None]


def paint_thing(rng: np.random.Generator, style: Style, picture: np.ndarray, thing: Thing, light: Light) -> None:
    """Texture in two colours, shaded along the light, darker towards the rim."""
    stamp = thing.stamp
    size = stamp.alpha.shape
    diameter = float(np.sqrt(thing.figure.area))
    centre = (thing.centre[0] - stamp.left, thing.centre[1] - stamp.top)
    share = draw_texture(rng, style, thing.texture, size, centre, thing.figure.angle, diameter)
    first, second = contrasting_pair(
        rng, style.object_hue, style.object_saturation, style.object_value, pick(rng, style.contrast)
    )
    if rng.random() < style.camouflage_chance:
        first = picture[stamp.window].reshape(-1, 3).mean(axis=0)
    surface = first + (second - first) * share[..., None]
    rows, columns = pixel_grid(*size)
    along = (light.direction[0] * (columns - centre[0]) + light.direction[1] * (rows - centre[1])) / diameter
    alpha = stamp.alpha / 255.0
    pad = max(int(0.1 * diameter), 1)
    inside = soft_blur(np.pad(alpha, pad), 0.5 * pad)[pad:-pad, pad:-pad]
    brightness = (1.0 + light.shading * np.clip(along, -1.0, 1.0)) * (
        1.0 - 2 * light.bevel * (1.0 - np.clip(inside, 0.5, 1))
    )
    surface = np.clip(surface * brightness[..., None], 0.0, 1.0)
    below = picture[stamp.window]
    below += (surface - below) * alpha[..., None]


def light_and_lens(rng: np.random.Generator, style: Style, picture: np.ndarray) -> np.ndarray:
    """Uneven light, vignette, exposure, tint, slight blur and grain; returns uint8 RGB."""
    height, width = picture.shape[:2]
    field = smooth_noise(rng, height, width, 0.6 * min(height, width))
    rows, columns = pixel_grid(height, width)
    radius2 = ((rows - height / 2) / height) ** 2 + ((columns - width / 2) / width) ** 2
    gain = (1.0 + pick(rng, style.light_field) * field) * (1.0 - pick(rng, style.vignette) * 2 * radius2)
    tint = 1.0 + rng.uniform(-style.tint, style.tint, 3)
    picture = picture * (gain * pick(rng, style.exposure))[..., None] * tint
    if rng.random() < style.blur_chance:
        picture = cv2.GaussianBlur(picture, (7, 7), pick(rng, style.blur))
    picture = picture + rng.normal(0.0, pick(rng, style.grain), picture.shape)
    return np.rint(np.clip(picture, 0.0, 1.0) * 255.0).astype(np.uint8)


def draw_scene(rng: np.random.Generator, style: Style, height: int, width: int) -> Scene:
    """Everything about one picture, from one random stream."""
    things = draw_layout(rng, style, height, width)
    light = draw_light(rng, style)
    picture = draw_background(rng, style, height, width)
    for thing in things:
        cast_shadow(picture, thing, light)
        paint_thing(rng, style, picture, thing, light)
    objects = [(thing.category_id, thing.visible) for thing in things if thing.category_id != DISTRACTOR]
    return Scene(light_and_lens(rng, style, picture), objects)
