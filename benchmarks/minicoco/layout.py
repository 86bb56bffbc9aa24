"""What stands where: kinds, sizes, places and depth order of the things in one scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .categories import CATEGORY_PAIRS, DISTRACTOR, distractor_pairs
from .fields import pick
from .shapes import Figure, Stamp, make_figure, stamp_figure
from .styles import Style

COVERAGE_GOAL = (0.2, 0.45)
LAYOUT_ATTEMPTS = 10
PLACE_ATTEMPTS = 12
LARGEST_SHARE = 0.36
SMALLEST_AREA = 130.0
SMALLEST_VISIBLE_PIXELS = 80
SMALLEST_VISIBLE_SHARE = 0.3
OVERLAP_HABITS = (0.02, 0.35)


@dataclass
class Thing:
    """One object or distractor; `visible` is set on the whole canvas once everything stands."""

    category_id: int
    texture: str
    figure: Figure
    centre: tuple[float, float]
    stamp: Stamp
    visible: np.ndarray | None = None

    @property
    def visible_pixels(self) -> int:
        return 0 if self.visible is None else int(self.visible.sum())


def draw_areas(rng: np.random.Generator, style: Style, canvas_area: int) -> np.ndarray:
    """Pixel areas of 1..12 objects that together aim at the style's coverage."""
    goal = pick(rng, style.coverage) * canvas_area * 1.08
    weights = np.asarray(style.object_count_weights, dtype=np.float64)
    count = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    count = max(1, min(count, int(goal // (2 * SMALLEST_AREA))))
    share = np.exp(rng.normal(0.0, style.size_spread, count))
    return np.clip(goal * share / share.sum(), SMALLEST_AREA, LARGEST_SHARE * canvas_area)


def place(
    rng: np.random.Generator, figure: Figure, taken: np.ndarray, allowed_overlap: float
) -> tuple[tuple[float, float], Stamp] | None:
    """The first place whose overlap with `taken` is allowed, else the least overlapping one."""
    height, width = taken.shape
    reach = np.minimum(figure.half_extent * 0.85, [width * 0.42, height * 0.42])
    best, least = None, np.inf
    for _ in range(PLACE_ATTEMPTS):
        centre = (pick(rng, (reach[0], width - reach[0])), pick(rng, (reach[1], height - reach[1])))
        stamp = stamp_figure(figure, centre, height, width)
        if stamp is None:
            continue
        overlap = float((taken[stamp.window] & stamp.mask).sum()) / figure.area
        if overlap < least:
            best, least = (centre, stamp), overlap
        if least <= allowed_overlap:
            break
    return best


def propose(rng: np.random.Generator, style: Style, height: int, width: int) -> list[Thing]:
    """Objects and distractors in depth order, the farthest first."""
    canvas_area = height * width
    wanted = []
    for area in draw_areas(rng, style, canvas_area):
        number = int(rng.integers(len(CATEGORY_PAIRS)))
        wanted.append((number + 1, *CATEGORY_PAIRS[number], float(area)))
    strangers = distractor_pairs()
    for _ in range(int(rng.integers(style.distractors[0], style.distractors[1] + 1))):
        area = max(canvas_area * 0.012 * float(np.exp(rng.normal(0.0, 0.7))), SMALLEST_AREA)
        texture, shape = strangers[int(rng.integers(len(strangers)))]
        wanted.append((DISTRACTOR, texture, shape, min(area, 0.05 * canvas_area)))
    order = np.argsort([-entry[3] * float(np.exp(rng.normal(0.0, 0.8))) for entry in wanted], kind='stable')
    things = []
    taken = np.zeros((height, width), bool)
    crowded = rng.random() < style.overlap_chance
    for index in order:
        category_id, texture, shape, area = wanted[index]
        figure = make_figure(rng, style, shape, area)
        found = place(rng, figure, taken, OVERLAP_HABITS[int(crowded and rng.random() < 0.6)])
        if found is None:
            continue
        centre, stamp = found
        taken[stamp.window] |= stamp.mask
        things.append(Thing(category_id, texture, figure, centre, stamp))
    return things


def settle(things: list[Thing], height: int, width: int) -> list[Thing]:
    """Compute visible masks; an object that is hardly seen leaves the scene, so nothing unlabelled remains of it."""
    while True:
        hidden = np.zeros((height, width), bool)
        for thing in reversed(things):
            visible = np.zeros((height, width), bool)
            visible[thing.stamp.window] = thing.stamp.mask
            thing.visible = visible & ~hidden
            hidden |= visible
        kept = [thing for thing in things if is_seen(thing)]
        if len(kept) == len(things):
            return kept
        things = kept


def is_seen(thing: Thing) -> bool:
    floor = max(SMALLEST_VISIBLE_PIXELS, SMALLEST_VISIBLE_SHARE * thing.figure.area)
    return thing.category_id == DISTRACTOR or thing.visible_pixels >= floor


def coverage(things: list[Thing]) -> float:
    """Share of the canvas that annotated objects show."""
    seen = [thing for thing in things if thing.category_id != DISTRACTOR]
    return sum(thing.visible_pixels for thing in seen) / things[0].visible.size if seen else 0.0


def draw_layout(rng: np.random.Generator, style: Style, height: int, width: int) -> list[Thing]:
    """A scene whose coverage lies in the goal, or the nearest of a few tries."""
    best: list[Thing] = []
    nearest = np.inf
    for _ in range(LAYOUT_ATTEMPTS):
        things = settle(propose(rng, style, height, width), height, width)
        share = coverage(things)
        miss = max(COVERAGE_GOAL[0] - share, share - COVERAGE_GOAL[1], 0.0)
        if share > 0 and miss < nearest:
            best, nearest = things, miss
        if nearest == 0.0:
            break
    return best
