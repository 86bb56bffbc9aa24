"""Window noise of SAQA beside that of its controls, from the start that has converged: three of the five pairs."""

from __future__ import annotations

from typing import Any

from ..comparisons import Comparison, Reading
from ..intervals import Interval, student_interval
from ..page import Listing, Summary, interval_cells
from ..reader import Reader
from ..stage import Stage
from .converged import CONTROLS, SAQAS
from .robustness import HALF_NAMES, by_importance

SEEDS = (1, 2, 3)  # of the pairs whose models were at hand when the claims were written
PAIRS = [[by_importance(arm.name, arm) for arm in (SAQAS[seed], CONTROLS[seed])] for seed in SEEDS]
PLACES = ('all', *HALF_NAMES)
LAST = -1
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


def by_seed(reader: Reader) -> list[list[Summary]] | None:
    """For each pair, stage and place what SAQA has more than its control; None unless all were measured."""
    found = [[reader.result(arm) for arm in pair] for pair in PAIRS]
    if any(result is None for pair in found for result in pair):
        return None
    stages = [[result['extras']['stages'] for result in pair if result] for pair in found]
    return [
        [{place: after[place] - control[place] for place in PLACES} for after, control in zip(*pair, strict=True)]
        for pair in stages
    ]


def gain(reader: Reader) -> Interval | None:
    """C10: of the last stage's windows."""
    found = by_seed(reader)
    return None if found is None else student_interval([pair[LAST]['all'] for pair in found])


def gain_of_the_important(reader: Reader) -> Interval | None:
    """C11: what the important half of the last stage gains more than the other."""
    found = by_seed(reader)
    important, other = HALF_NAMES
    return None if found is None else student_interval([pair[LAST][important] - pair[LAST][other] for pair in found])


def by_stage(reader: Reader) -> list[Summary] | None:
    """Intervals over the pairs, for each stage by place."""
    found = by_seed(reader)
    if found is None:
        return None
    return [
        {place: student_interval([stage[place] for stage in pairs]).as_dict() for place in PLACES}
        for pairs in zip(*found, strict=True)
    ]


def cells(found: list[Summary] | None) -> list[list[Any]]:
    """A row for each stage."""
    return [
        [number, *(cell for place in PLACES for cell in interval_cells(stage[place]))]
        for number, stage in enumerate(found or [], 1)
    ]


OVER = "seeds (Student's t)"
CLAIMS: dict[str, Comparison] = {'C10': Reading(gain, OVER), 'C11': Reading(gain_of_the_important, OVER)}
NOISE = Listing(
    'noise',
    by_stage,
    ['stage', *(header for place in PLACES for header in (place, '95 %'))],
    cells,
    text=TEXT,
    missing=lambda found: [] if found else [arm.name for pair in PAIRS for arm in pair],
)
