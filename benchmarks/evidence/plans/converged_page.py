"""What the experiment from a converged float model says: docs/results/converged.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mixaq_mmdet.engine.matches import Matches

from ..comparisons import Comparison, Reading
from ..experiment import Experiment
from ..intervals import Interval, difference, exactly, score, smallest_effect
from ..page import BITS, BOPS, BOX, MASK, Facts, Models, Page
from ..paired_seeds import PairedSeeds
from ..reader import Reader
from .branch_rate import COMPARED, relative_difference
from .converged import ALIGNED, ASKED, BEFORE, LEGS, TUNING, TWINS, W3A3, W4A3, Arms, at

PUBLISHED_SHARE = 0.24  # of the degradation: 43.1 to 43.8 where float has 46.0
COUNTED = 'counted'
FLOATS = [BEFORE.on('search', 'float, first model'), *LEGS, ALIGNED]


def tuned(reader: Reader, training: Experiment) -> Matches | None:
    """Box matches on `search` and `val` together."""
    if training == BEFORE:
        rows = [training.on('search'), training]
    elif training in LEGS:
        rows = [training, training.on('val')]
    else:
        rows = [at(training, split) for split in TUNING]
    return reader.pooled(rows)


def points(reader: Reader, arms: Sequence[Experiment]) -> list[float] | None:
    """AP of each arm on `search` and `val` together; None unless all were run."""
    found = [tuned(reader, arm) for arm in arms]
    return None if None in found else [score(matches).estimate for matches in found if matches is not None]


def still_learns(reader: Reader) -> Interval | None:
    """C1: what the last leg that was run has brought to the float model."""
    results = [matches for model in (BEFORE, *LEGS) if (matches := tuned(reader, model)) is not None]
    if len(results) < 2:
        return None
    found = difference(results[-1], results[-2])
    return exactly(found.estimate, found.images)


def gate(reader: Reader, arms: Arms) -> dict[str, float] | None:
    """C2: the degradation on `search` and `val`, and the half-width that the controls let expect of C4's interval."""
    twins, controls = points(reader, TWINS), points(reader, arms.controls)
    start, control = tuned(reader, arms.published), tuned(reader, arms.controls[0])
    if twins is None or controls is None or start is None or control is None:
        return None
    mean = sum(controls) / len(controls)
    spread = (sum((point - mean) ** 2 for point in controls) / (len(controls) - 1)) ** 0.5
    half_width = smallest_effect(2**0.5 * spread, len(controls), difference(control, start).standard_error)
    degradation = sum(twins) / len(twins) - mean
    return {'degradation': degradation, 'spread': spread, 'half_width': half_width}


def passes(reader: Reader, arms: Arms) -> Interval | None:
    """C2's number."""
    found = gate(reader, arms)
    return None if found is None else exactly(PUBLISHED_SHARE * found['degradation'] - found['half_width'])


def on_split(arms: Arms, low: float = 0.0, random: bool = False) -> Callable[[str], list[dict[str, Experiment]]]:
    """For each seed on a split: SAQA at a ratio, its control (or the random ranking), the start, the twins."""

    def on(split: str) -> list[dict[str, Experiment]]:
        twins = {f'twin_{number}': at(twin, split) for number, twin in enumerate(TWINS)}
        return [
            {'saqa': at(saqa, split, low), 'control': at(other, split), 'start': at(arms.published, split), **twins}
            for saqa, other in zip(arms.saqas, arms.randoms if random else arms.controls, strict=True)
        ]

    return on


def twin_of(ap: Mapping[str, Any]) -> Any:
    """AP of the float twin, mean over its seeds."""
    twins = [value for name, value in ap.items() if name.startswith('twin_')]
    return sum(twins) / len(twins)


def recovered(**ap: Any) -> Any:
    """C5: the gain on the control, less the published share of what the control has lost."""
    return ap['saqa'] - ap['control'] - PUBLISHED_SHARE * (twin_of(ap) - ap['control'])


def against(name: str) -> Callable[..., Any]:
    """SAQA less another arm."""
    return lambda **ap: ap['saqa'] - ap[name]


def rate(name: str) -> Comparison:
    """A claim of the pilot."""
    return Reading(lambda reader: relative_difference(reader, *COMPARED[name]), over=PairedSeeds.over)


def claims_about(arms: Arms) -> dict[int, Comparison]:
    """What decides the claims about some arms, by the last of their ids."""
    return {
        2: Reading(partial(passes, arms=arms), over=COUNTED),
        3: PairedSeeds(on_split(arms), lambda **ap: ap['control'] - twin_of(ap)),
        4: PairedSeeds(on_split(arms), against('control')),
        5: PairedSeeds(on_split(arms), recovered),
        6: PairedSeeds(on_split(arms), against('start')),
        7: PairedSeeds(on_split(arms, low=0.4), against('start')),
        8: PairedSeeds(on_split(arms, low=0.4), against('control')),
        9: PairedSeeds(on_split(arms, random=True), against('control')),
    }


CLAIMS: dict[str, Comparison] = {
    'C1': Reading(still_learns, over=COUNTED),
    **{f'{first}{last}': decides for first, arms in ASKED.items() for last, decides in claims_about(arms).items()},
    **{name: rate(name) for name in COMPARED},
}
TEXT = """\
Mini Mask R-CNN from a float model that was trained on 16 000 images in eight legs of 750 steps, the last of which still
brought something, and whose windows were aligned behind them ([why](ptq_longer.md)).
Five paired seeds of SAQA and of its control start from one W4A3 model; all are evaluated by the running average of
their weights. The table of models is on `search` (300 images), the claims are on the first 1000 images each of `test`
and `test_b`. All of this is *simulated* (fake quantization). The protocol says
[what each outcome means](protocol.md#a-start-that-has-converged), and what is run in
which order."""


def gates(reader: Reader) -> dict[str, dict[str, float]]:
    """The gate of all arms that were run so far."""
    found = {arms.bits: gate(reader, arms) for arms in ASKED.values()}
    return {bits: numbers for bits, numbers in found.items() if numbers is not None}


def told(found: dict[str, dict[str, float]]) -> str:
    """The gates in words."""
    return '\n'.join(
        f'At {bits} the degradation on `search` and `val` is {numbers["degradation"]:.2f} AP, the published share '
        f'{PUBLISHED_SHARE * numbers["degradation"]:.2f}. The controls vary by {numbers["spread"]:.2f} between seeds: '
        f'an interval of +-{numbers["half_width"]:.2f} is to be expected.'
        for bits, numbers in found.items()
    )


QUANTIZED = [row for arms in (W4A3, W3A3) for row in (arms.training, *arms.controls, *arms.saqas, *arms.randoms)]
TOPICS = [
    Page(
        'converged',
        'SAQA from a start that has converged',
        TEXT,
        CLAIMS,
        [
            Facts('gates', gates, told),
            Models(
                [*FLOATS, W4A3.training, *TWINS, *W4A3.controls, *W4A3.saqas, *W4A3.randoms], (BOX, MASK, BITS, BOPS)
            ),
        ],
    )
]
