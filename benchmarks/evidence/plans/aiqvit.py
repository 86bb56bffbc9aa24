"""AIQViT part by part on val, alone and under MixA-Q: docs/results/aiqvit.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import Arm, differences
from ..experiment import Experiment
from ..page import BOX, MASK, Models, Page, Summary, cost_column
from ..pictures import models_beside
from ..stage import Stage
from . import aiqvit_budget
from .float_models import FLOAT
from .ptq import DETECTOR, HARD, QUANT, W3A3, W4A4, calibrated

RECIPE = 'aiqvit-w4a4'
ALONE = {f'{QUANT}ranks': [], f'{QUANT}curriculum': False}
FIXED_RANK = {f'{QUANT}ranks': [8], f'{QUANT}curriculum': False}
SEARCHED_RANK = {f'{QUANT}curriculum': False}
SEEDS = range(5)


def reconstructed(name: str, recipe: str, **overrides: Any) -> Experiment:
    """Calibrate with reconstruction. The second revision trains towards float weights, the first towards quantized."""
    return replace(calibrated(name, recipe, **overrides), revision=2)


FOCUSING = reconstructed('+ focusing quantizer', RECIPE, **ALONE)
FIXED = reconstructed('+ compensation of rank 8', RECIPE, **FIXED_RANK)
SEARCHED = reconstructed('+ searched rank', RECIPE, **SEARCHED_RANK)
WHOLE = reconstructed('+ curriculum: AIQViT', RECIPE)
MIXED = reconstructed('AIQViT W4A4/A2, half low', 'mixaq-aiqvit-w4a4')
CORE = [FLOAT, W4A4, FOCUSING, FIXED, SEARCHED, WHOLE, HARD, MIXED]

W3A3_WHOLE = reconstructed('AIQViT W3A3', RECIPE, **{f'{QUANT}w_bits': 3, f'{QUANT}a_bits': 3})
# neck and heads are RepQ's in both arms: the compensation is the backbone's
DETECTOR_WHOLE = reconstructed(
    'AIQViT W4A4, heads by RepQ', 'ptq-w4a4-detector', **{'model.backbone.quant.method': 'AIQViT'}
)
SIZES = [
    reconstructed(f'AIQViT, {number} calibration pictures', RECIPE, **{'train_cfg.num_images': number})
    for number in (8, 16, 64)
]
TIMES = [
    reconstructed(f'AIQViT, {name} the steps', RECIPE, **{f'{QUANT}steps': steps, f'{QUANT}search_steps': search})
    for name, steps, search in (('a quarter of', 40, 15), ('four times', 640, 240))
]


def seeded(experiment: Experiment, recipe: str, overrides: dict[str, Any]) -> list[Experiment]:
    """The experiment and its repeats: each seed draws other pictures, and other factors where there are some."""
    repeats = [experiment]
    for seed in SEEDS[1:]:
        edits = {**overrides, 'train_cfg.seed': seed}
        if recipe == RECIPE:
            edits[f'{QUANT}seed'] = seed
        repeat = calibrated(f'{experiment.name}, seed {seed}', recipe, **edits)
        repeats.append(replace(repeat, revision=experiment.revision))
    return repeats


REPEATS = {
    'repq': seeded(W4A4, 'ptq-w4a4', {}),
    'focusing': seeded(FOCUSING, RECIPE, ALONE),
    'fixed': seeded(FIXED, RECIPE, FIXED_RANK),
    'searched': seeded(SEARCHED, RECIPE, SEARCHED_RANK),
    'whole': seeded(WHOLE, RECIPE, {}),
}
FULL = [W3A3, W3A3_WHOLE, DETECTOR, DETECTOR_WHOLE, *SIZES, *TIMES]
FULL += [experiment for repeats in REPEATS.values() for experiment in repeats]

# claim: (treatment, control)
PAIRS: dict[str, tuple[Arm, Arm]] = {
    'V1': (FOCUSING, W4A4),
    'V2': (FIXED, FOCUSING),
    'V3': (SEARCHED, FIXED),
    'V4': (WHOLE, SEARCHED),
    'V5': (WHOLE, W4A4),
    'V6': (MIXED, HARD),
    'V7': (W3A3_WHOLE, W3A3),
    'V8': (DETECTOR_WHOLE, DETECTOR),
    'V9': (REPEATS['searched'], REPEATS['fixed']),
    'V10': (REPEATS['whole'], REPEATS['repq']),
}

STAGES = [
    Stage(
        'aiqvit',
        'AIQViT part by part at W4A4, alone and under MixA-Q, on val',
        CORE,
        hours=0.6,
        claims=['V1', 'V2', 'V3', 'V4', 'V5', 'V6'],
        topics=['aiqvit'],
        rank=60,
    ),
    Stage(
        'aiqvit-full',
        'AIQViT at W3A3, beside a quantized detector, over five seeds, by calibration size and time',
        FULL,
        hours=4,
        tier='full',
        claims=['V7', 'V8', 'V9', 'V10'],
        topics=['aiqvit'],
        rank=60,
    ),
]


TEXT = """\
Mini Mask R-CNN on val (500 images), W4A4 in the backbone, 32 calibration images of `calib`, one seed unless a row
says otherwise. Each row of the first block adds one part to the row above. *G MACs* and *G bit operations* (MACs x
weight bits x activation bits) are the backbone's, the compensation's float factors included. All of this is *simulated*
(fake quantization). [What is ours in it](../aiqvit.md)."""
GIGA = 1e9
COSTS = (
    cost_column('G MACs', 'macs', 'executed', scale=GIGA),
    cost_column('G bit operations', 'bit_operations', 'standard', 'executed', scale=GIGA),
)
EVERY = list({experiment.name: experiment for experiment in [*CORE, *FULL]}.values())


def plot(summary: Summary, figure: Any) -> None:
    """Box AP of each row."""
    shown = [row for row in summary['rows'] if row['result']]
    models_beside(figure.subplots(), shown, lambda row: COLOURS[1] if 'low' in row['name'] else COLOURS[0])


CLAIMS = {**differences(PAIRS), **aiqvit_budget.CLAIMS}
TOPICS = [Page('aiqvit', 'AIQViT', TEXT, CLAIMS, [Models(EVERY, (BOX, MASK, *COSTS))], plot, size=(8.5, 5))]
