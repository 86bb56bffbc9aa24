"""How many updates per block AIQViT needs, by the error of the maps on images that it was not fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..comparisons import Comparison, Reading
from ..experiment import Experiment
from ..intervals import Interval
from ..reader import Reader
from ..stage import Stage
from .float_models import CONFIG, FIRST
from .ptq import QUANT, calibrated

RECIPE = 'mixaq-aiqvit-w4a4'
BUDGETS = (0, 160, 640)
RATIOS = (0.0, 0.5)


def calibration(steps: int) -> Experiment:
    """AIQViT with so many updates, and as many pairs of the rank search in proportion."""
    overrides: dict[str, Any] = {f'{QUANT}steps': steps, f'{QUANT}search_steps': steps * 3 // 8}
    return calibrated(f'AIQViT W4A4/A2, {steps} updates', RECIPE, **overrides)


def measured(steps: int) -> Experiment:
    """Its feature error."""
    return Experiment(
        f'AIQViT W4A4/A2, {steps} updates, feature error',
        'measure',
        config=CALIBRATIONS[steps].config,
        overrides=CALIBRATIONS[steps].overrides,
        starts_from=CALIBRATIONS[steps],
        split='search',
        measure='evidence.measures.features:error',
        settings={'images': 300, 'ratios': list(RATIOS), 'reference': [CONFIG, FIRST]},
    )


CALIBRATIONS = {steps: calibration(steps) for steps in BUDGETS}
ERRORS = {steps: measured(steps) for steps in BUDGETS}
STAGES = [
    Stage(
        'aiqvit-budget',
        'AIQViT with 0, 160 and 640 updates per block: the error of its maps',
        [*CALIBRATIONS.values(), *ERRORS.values()],
        hours=1,
        tier='full',
        claims=['V11', 'V12'],
        topics=['aiqvit'],
        rank=58,
    ),
]


def still_gained(reader: Reader, ratio: float) -> Interval | None:
    """What four times as many updates than 160 gain, in % of the error without any, over images."""
    results = {steps: reader.result(experiment) for steps, experiment in ERRORS.items()}
    if None in results.values():
        return None
    none, usual, more = (
        np.array(result['extras']['by_image'][str(ratio)]) for result in results.values() if result is not None
    )
    gain = 100 * (usual - more) / none.mean()
    error = float(gain.std(ddof=1) / len(gain) ** 0.5)
    estimate = float(gain.mean())
    return Interval(estimate, estimate - 1.96 * error, estimate + 1.96 * error, error, len(gain), 1)


# on the page of AIQViT
CLAIMS: dict[str, Comparison] = {
    'V11': Reading(lambda reader: still_gained(reader, 0.0)),
    'V12': Reading(lambda reader: still_gained(reader, 0.5)),
}
