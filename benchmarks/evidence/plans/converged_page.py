"""What the experiment from a converged float model says: docs/results/converged.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixaq_mmdet.engine.matches import Matches

from ..comparisons import Comparison, Reading
from ..experiment import Experiment
from ..intervals import Interval, difference, exactly, score, smallest_effect
from ..page import BITS, BOPS, BOX, MASK, Facts, Models, Page
from ..paired_seeds import PairedSeeds
from ..reader import Reader
from ..splits import SEALED
from . import converged_noise
from .branch_rate import COMPARED, relative_difference
from .converged import ALIGNED, BEFORE, CONTROLS, LEGS, QAT, QAT_TRAINING, RANDOMS, SAQAS, TUNING, TWINS, at

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


def gate(reader: Reader) -> dict[str, float] | None:
    """C2: the degradation on `search` and `val`, and the half-width that the controls let expect of C4's interval."""
    twins, controls = points(reader, TWINS), points(reader, CONTROLS)
    start, control = tuned(reader, QAT), tuned(reader, CONTROLS[0])
    if twins is None or controls is None or start is None or control is None:
        return None
    mean = sum(controls) / len(controls)
    spread = (sum((point - mean) ** 2 for point in controls) / (len(controls) - 1)) ** 0.5
    half_width = smallest_effect(2**0.5 * spread, len(controls), difference(control, start).standard_error)
    degradation = sum(twins) / len(twins) - mean
    return {'degradation': degradation, 'spread': spread, 'half_width': half_width}


def passes(reader: Reader) -> Interval | None:
    """C2's number."""
    found = gate(reader)
    return None if found is None else exactly(PUBLISHED_SHARE * found['degradation'] - found['half_width'])


def arms_on(low: float = 0.0, others: Sequence[Experiment] = CONTROLS) -> Callable[[str], list[dict[str, Experiment]]]:
    """For each seed on a split: SAQA at a ratio, what it is held against, the start, the twins."""

    def on(split: str) -> list[dict[str, Experiment]]:
        twins = {f'twin_{number}': at(twin, split) for number, twin in enumerate(TWINS)}
        return [
            {'saqa': at(saqa, split, low), 'control': at(control, split), 'start': at(QAT, split), **twins}
            for saqa, control in zip(SAQAS, others, strict=True)
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


CLAIMS: dict[str, Comparison] = {
    'C1': Reading(still_learns, over=COUNTED),
    'C2': Reading(passes, over=COUNTED),
    'C3': PairedSeeds(arms_on(), lambda **ap: ap['control'] - twin_of(ap)),
    'C4': PairedSeeds(arms_on(), against('control')),
    'C5': PairedSeeds(arms_on(), recovered),
    'C6': PairedSeeds(arms_on(), against('start')),
    'C7': PairedSeeds(arms_on(low=0.4), against('start')),
    'C8': PairedSeeds(arms_on(low=0.4), against('control')),
    'C9': PairedSeeds(arms_on(others=RANDOMS), against('control')),
    **converged_noise.CLAIMS,
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


def told(found: dict[str, float] | None) -> str:
    """The gate in words."""
    if found is None:
        return ''
    share = PUBLISHED_SHARE * found['degradation']
    return (
        f'On `search` and `val` the degradation is {found["degradation"]:.2f} AP, the published share {share:.2f}. '
        f'The controls vary by {found["spread"]:.2f} between seeds: an interval of +-{found["half_width"]:.2f} is '
        'to be expected.'
    )


def trained_again(reader: Reader) -> list[str]:
    """The trainings whose rows on the test splits are of another checkpoint than those on `search` and `val`."""
    trainings = [*TWINS, *CONTROLS, *SAQAS, *RANDOMS]
    return [arm.name for arm in trainings if any(reader.starts_anew(at(arm, split)) for split in SEALED)]


def again(names: list[str]) -> str:
    """Which they are, and what that means."""
    if not names:
        return ''
    return (
        'Trained again for the test splits, because the first checkpoint was gone: '
        f'{"; ".join(names)}. The same seed ends with slightly other weights on another processor. Rows on `search` '
        'and `val` are of the first training.'
    )


TOPICS = [
    Page(
        'converged',
        'SAQA from the float model that was trained longer',
        TEXT,
        CLAIMS,
        [
            Facts('gate', gate, told),
            Facts('trained_again', trained_again, again),
            Models([*FLOATS, QAT_TRAINING, *TWINS, *CONTROLS, *SAQAS, *RANDOMS], (BOX, MASK, BITS, BOPS)),
            converged_noise.NOISE,
        ],
    )
]
