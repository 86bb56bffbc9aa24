"""Training-free quantization beyond the core rows: calibration seeds, methods, ratios, float models."""

from __future__ import annotations

from typing import Any

from ..experiment import Experiment
from ..intervals import difference
from ..page import BOX, Models, Page, Summary
from ..reader import Reader
from ..stage import Stage
from .float_models import FIRST, FLOAT, SECOND
from .ptq import AGAINST_FLOAT, COST, MIXED, QUANT, RATIOS, RECIPE, W4A4, W4A8, of

METHODS = ('MinMax', 'Percentile', 'MSE')
BITS = ('w8a8', 'w4a8', 'w4a4')
UNIFORM_RATIOS = (0.2, 0.4, 0.6, 0.8)
CALIBRATION_SEEDS = (1, 2, 3, 4)  # beside the core rows' 0


def calibrated_on(start: Experiment | str, name: str, recipe: str, **overrides: Any) -> Experiment:
    """Calibrate a float model by a recipe, then evaluate it."""
    return Experiment(name, 'train', config=RECIPE.format(recipe), overrides=overrides, starts_from=start, probe=COST)


SEEDS = [
    calibrated_on(FIRST, f'{row.name}, calibration {seed}', recipe, **{'train_cfg.seed': seed})
    for row, recipe in ((W4A8, 'ptq-w4a8'), (MIXED, 'mixaq-ptq-w4a8'), (W4A4, 'ptq-w4a4'))
    for seed in CALIBRATION_SEEDS
]
GRID = [
    calibrated_on(FIRST, f'{method} {bits.upper()}, all', f'ptq-{bits}', **{f'{QUANT}method': method})
    for method in METHODS
    for bits in BITS
]
CURVE = [of(MIXED, f'MixA-Q W4A8/A4, ratio {ratio}', **{RATIOS: [ratio] * 6}) for ratio in UNIFORM_RATIOS]
SECOND_MODEL = [
    calibrated_on(SECOND, f'{row.name}, second float model', recipe)
    for row, recipe in ((W4A8, 'ptq-w4a8'), (MIXED, 'mixaq-ptq-w4a8'), (W4A4, 'ptq-w4a4'))
]

STAGES = [
    Stage('ptq-seeds', 'four more calibration sets', SEEDS, 0.5, 'full', topics=['ptq_full'], rank=30),
    Stage('ptq-grid', 'all methods, and ratios', [*GRID, *CURVE], 0.6, 'full', topics=['ptq_full'], rank=40),
    Stage('ptq-second', 'the second float model', SECOND_MODEL, 0.2, 'full', topics=['ptq_full'], rank=50),
]


def loss(reader: Reader, experiment: Experiment) -> Summary:
    """What a model has lost of its own float model's AP."""
    matches = reader.matches(experiment)
    reference = reader.matches(SECOND if experiment in SECOND_MODEL else FLOAT)
    if matches is None or reference is None:
        return {}
    return {'loss': difference(matches, reference).as_dict()}


TEXT = 'As [the core rows](ptq.md), one row per calibration; exploratory, without a claim of its own.'
EVERY = [experiment for stage in STAGES for experiment in stage.experiments]
TOPICS = [
    Page(
        'ptq_full',
        'Training-free quantization: seeds, methods, ratios',
        TEXT,
        parts=[Models(EVERY, (BOX, AGAINST_FLOAT), more=loss)],
    )
]
