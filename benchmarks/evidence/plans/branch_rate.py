"""The pilot that decides the learning rate of the low branch's own parameters: backbone alone, W4A3 with low A2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..experiment import Experiment
from ..intervals import Interval, student_interval
from ..reader import Reader
from ..stage import Stage
from .float_models import FIRST

CONFIG = 'configs/mini/mask-rcnn_swin-mini_saqa-w4a3-16k.py'
SEEDS = range(3)
MULTIPLIERS = (1, 10)
RATIOS = (0.0, 0.4, 0.8)


def arm(name: str, seed: int, sampling: str, multiplier: int) -> Experiment:
    """300 steps towards the maps of the float model."""
    settings = {
        'steps': 300,
        'rate': 2e-4,
        'sampling': sampling,
        'branch_lr_mult': multiplier,
        'images': 100,
        'ratios': list(RATIOS),
    }
    return Experiment(
        f'pilot, {name}, seed {seed}',
        'measure',
        config=CONFIG,
        seed=seed,
        starts_from=FIRST,
        split='search',
        measure='evidence.measures.pilot:adapt',
        settings=settings,
    )


CONTROLS = [arm('control', seed, 'fixed', 1) for seed in SEEDS]
SAQAS = {
    multiplier: [arm(f'SAQA, low branch x{multiplier}', seed, 'uniform_sum', multiplier) for seed in SEEDS]
    for multiplier in MULTIPLIERS
}
STAGES = [
    Stage(
        'branch-rate',
        'a pilot on the backbone alone: does the low branch learn better at ten times the rate',
        [*CONTROLS, *(row for rows in SAQAS.values() for row in rows)],
        hours=2,
        tier='full',
        claims=['B1', 'B2', 'B3'],
        topics=['converged'],
        rank=59,
    ),
]
# claim: treatment, control, ratio
COMPARED = {
    'B1': (SAQAS[10], SAQAS[1], 0.4),
    'B2': (SAQAS[10], SAQAS[1], 0.0),
    'B3': (SAQAS[1], CONTROLS, 0.0),
}


def relative_difference(
    reader: Reader, treatments: Sequence[Experiment], controls: Sequence[Experiment], ratio: float
) -> Interval | None:
    """Feature error of the treatment less that of the control in % of it, paired by seed and image."""
    arms = []
    for arm in (treatments, controls):
        results = [reader.result(experiment) for experiment in arm]
        if None in results:
            return None
        arms.append(np.array([result['extras']['by_image'][str(ratio)] for result in results if result]))
    treated, control = arms
    unit = 100 / control.mean()
    by_seed = (treated - control).mean(axis=1) * unit
    by_image = (treated - control).mean(axis=0) * unit
    return student_interval(by_seed, float(by_image.std(ddof=1) / len(by_image) ** 0.5), images=len(by_image))
