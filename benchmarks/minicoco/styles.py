"""The two looks of mini-COCO. Style A is what models train on; style B asks whether they learned the rules."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """Ranges a scene is drawn from; lengths are relative to the object or the image, intensities to [0, 1]."""

    name: str
    # proportions of the shapes
    disc_aspect: Range
    box_aspect: Range
    box_rounding: Range
    triangle_height: Range
    triangle_lean: Range
    star_points: tuple[int, ...]
    star_inner: Range
    ring_hole: Range
    ring_aspect: Range
    shear: float
    # textures: period relative to the square root of the object's area
    period: Range
    duty: Range
    contrast: Range
    # colours in HSV
    object_hue: Range
    object_saturation: Range
    object_value: Range
    camouflage_chance: float
    # background
    backgrounds: tuple[str, ...]
    background_hue: Range
    background_saturation: Range
    background_value: Range
    background_relief: Range
    clutter_chance: float
    clutter_items: tuple[int, int]
    clutter_contrast: Range
    # what stands in the scene
    object_count_weights: tuple[float, ...]
    size_spread: float
    coverage: Range
    overlap_chance: float
    distractors: tuple[int, int]
    # lighting
    shading: Range
    bevel: Range
    shadow: Range
    light_field: Range
    vignette: Range
    exposure: Range
    tint: float
    blur_chance: float
    blur: Range
    grain: Range


STYLE_A = Style(
    name='A',
    disc_aspect=(0.68, 1.0),
    box_aspect=(0.55, 1.0),
    box_rounding=(0.0, 0.22),
    triangle_height=(0.75, 1.15),
    triangle_lean=(-0.25, 0.25),
    star_points=(5, 5, 6),
    star_inner=(0.42, 0.54),
    ring_hole=(0.42, 0.58),
    ring_aspect=(0.75, 1.0),
    shear=0.12,
    period=(0.18, 0.34),
    duty=(0.42, 0.58),
    contrast=(0.16, 0.55),
    object_hue=(0.0, 1.0),
    object_saturation=(0.15, 0.9),
    object_value=(0.25, 1.0),
    camouflage_chance=0.3,
    backgrounds=('gradient', 'horizon', 'field', 'planks', 'weave'),
    background_hue=(0.0, 1.0),
    background_saturation=(0.05, 0.42),
    background_value=(0.28, 0.8),
    background_relief=(0.02, 0.11),
    clutter_chance=0.55,
    clutter_items=(6, 26),
    clutter_contrast=(0.05, 0.22),
    object_count_weights=(5, 7, 8, 9, 9, 9, 9, 8, 7, 6, 5, 4),
    size_spread=1.15,
    coverage=(0.23, 0.42),
    overlap_chance=0.55,
    distractors=(0, 5),
    shading=(0.08, 0.3),
    bevel=(0.1, 0.4),
    shadow=(0.15, 0.5),
    light_field=(0.03, 0.2),
    vignette=(0.0, 0.3),
    exposure=(0.72, 1.14),
    tint=0.06,
    blur_chance=0.45,
    blur=(0.4, 1.1),
    grain=(0.004, 0.024),
)

# The same rules in another world: stretched shapes, finer patterns, pastel and earthy colours, busier and more
# uneven grounds, harder light.
STYLE_B = Style(
    name='B',
    disc_aspect=(0.58, 0.86),
    box_aspect=(0.42, 0.8),
    box_rounding=(0.03, 0.18),
    triangle_height=(0.62, 1.3),
    triangle_lean=(-0.45, 0.45),
    star_points=(5, 6, 7),
    star_inner=(0.38, 0.5),
    ring_hole=(0.48, 0.64),
    ring_aspect=(0.62, 0.92),
    shear=0.2,
    period=(0.16, 0.28),
    duty=(0.36, 0.64),
    contrast=(0.16, 0.5),
    object_hue=(-0.08, 0.24),
    object_saturation=(0.05, 0.6),
    object_value=(0.3, 1.0),
    camouflage_chance=0.3,
    backgrounds=('terrain', 'tiles', 'spotlit', 'foliage', 'horizon'),
    background_hue=(0.05, 0.5),
    background_saturation=(0.1, 0.5),
    background_value=(0.25, 0.75),
    background_relief=(0.03, 0.12),
    clutter_chance=0.65,
    clutter_items=(8, 30),
    clutter_contrast=(0.04, 0.18),
    object_count_weights=(3, 5, 7, 9, 10, 10, 9, 8, 7, 6, 5, 4),
    size_spread=1.0,
    coverage=(0.23, 0.42),
    overlap_chance=0.65,
    distractors=(1, 6),
    shading=(0.15, 0.4),
    bevel=(0.05, 0.3),
    shadow=(0.3, 0.6),
    light_field=(0.1, 0.28),
    vignette=(0.1, 0.45),
    exposure=(0.75, 1.25),
    tint=0.12,
    blur_chance=0.5,
    blur=(0.4, 1.1),
    grain=(0.008, 0.028),
)

STYLES = {style.name: style for style in (STYLE_A, STYLE_B)}
