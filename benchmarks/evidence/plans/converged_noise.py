"""Window noise of SAQA beside that of its controls, from the start that has converged: three of the five pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..comparisons import Comparison, Reading
from ..intervals import Interval, student_interval
from ..page import Listing, Summary, interval_cells
from ..reader import Reader
from ..stage import Stage
from .converged import CONTROLS, SAQAS
from .robustness import HALF_NAMES, LAST, by_importance, gain

SEEDS = (1, 2, 3)  # of the pairs whose models were at hand when the claims were written
PAIRS = [[by_importance(arm.name, arm) for arm in (SAQAS[seed], CONTROLS[seed])] for seed in SEEDS]
PLACES = ('all', *HALF_NAMES)
STAGES_OF_SWIN = 4
STAGES = [
    Stage(
        'converged-noise',
        'window noise of SAQA and of as much uniform training, by importance, from the start that has converged',
        [row for pair in PAIRS for row in pair],
        hours=0.3,
        tier='full',
        claims=['C10', 'C11'],
        topics=['converged'],
        rank=64,
    ),
]
TEXT = """\
## Noise of windows

What SAQA's windows have more than those of its control at the end of each stage, SQNR in dB against the same model
without rounding, every window high, 100 images of val. Mean over the pairs of three seeds. The *important half* of the
windows are those that would run high at ratio 0.5."""


def gains(reader: Reader, place: str, stage: int = LAST) -> list[float] | None:
    """What SAQA of each pair has more than its control at a stage; None unless all were measured."""
    found = [gain(reader, *pair, place, stage) for pair in PAIRS]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def gain_of_all(reader: Reader) -> Interval | None:
    """C10: of the last stage's windows."""
    found = gains(reader, 'all')
    return None if found is None else student_interval(found)


def gain_of_the_important(reader: Reader) -> Interval | None:
    """C11: what the important half of the last stage gains more than the other."""
    important, other = (gains(reader, half) for half in HALF_NAMES)
    if important is None or other is None:
        return None
    return student_interval(np.subtract(important, other))


def by_stage(reader: Reader) -> list[Summary] | None:
    """Intervals over the pairs, for each stage by place."""
    found = [{place: gains(reader, place, stage) for place in PLACES} for stage in range(STAGES_OF_SWIN)]
    if any(values is None for stage in found for values in stage.values()):
        return None
    return [
        {place: student_interval(values).as_dict() for place, values in stage.items() if values is not None}
        for stage in found
    ]


def cells(found: list[Summary] | None) -> list[list[Any]]:
    """A row for each stage."""
    return [
        [number, *(cell for place in PLACES for cell in interval_cells(stage[place]))]
        for number, stage in enumerate(found or [], 1)
    ]


OVER = "seeds (Student's t)"
CLAIMS: dict[str, Comparison] = {'C10': Reading(gain_of_all, OVER), 'C11': Reading(gain_of_the_important, OVER)}
NOISE = Listing(
    'noise',
    by_stage,
    ['stage', *(header for place in PLACES for header in (place, '95 %'))],
    cells,
    text=TEXT,
    missing=lambda found: [] if found else [arm.name for pair in PAIRS for arm in pair],
)
