"""SAQA's published gain at three bits, from a float model that has converged: the trainings, on 16 000 images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..experiment import Experiment
from ..splits import SEALED
from ..stage import Stage
from . import float_models

RECIPE = 'configs/mini/mask-rcnn_swin-mini_{}-16k.py'
COST = 'evidence.measures.cost:realised'
TUNING = ('search', 'val')
SEEDS, TWIN_SEEDS = range(5), range(3)
LOW = 'model.backbone.low_ratios'
SEALED_IMAGES = {'test_dataloader.dataset.indices': 1000}
NO_QUANTIZER: Mapping[str, Any] = {
    'model.backbone.quant': None,
    'custom_hooks': [{'type': 'ExactResumeHook'}, {'type': 'EMAHook', 'momentum': 0.005}],
}
FIXED = {'optim_wrapper.sampling': 'fixed'}
RANDOM = {'model.backbone.importance': {'type': 'Random', 'seed': 0}}


def trained(
    name: str, recipe: str, start: Experiment | str, seed: int = 0, probe: str | None = COST, **overrides: Any
) -> Experiment:
    """A training; its own evaluation is on `search`."""
    config = RECIPE.format(recipe)
    return Experiment(
        name, 'train', config=config, overrides=overrides, seed=seed, starts_from=start, split='search', probe=probe
    )


def arm(name: str, recipe: str, start: Experiment | str, seed: int, **overrides: Any) -> Experiment:
    """One seed of an arm: it decides the order of the images and the ratios that are drawn."""
    return trained(f'{name}, seed {seed}', recipe, start, seed, **{'optim_wrapper.seed': seed, **overrides})


def at(training: Experiment, split: str, low: float = 0.0) -> Experiment:
    """A training's model at a ratio, on a split; calibrated and averaged as it was saved."""
    edits: dict[str, Any] = {'custom_hooks': [], LOW: low}
    if split in SEALED:
        edits.update(SEALED_IMAGES)
    name = f'{training.name}{f", ratio {low}" if low else ""}-{split}'
    return replace(training.on(split, name), overrides={**training.overrides, **edits})


def leg(number: int, start: str) -> Experiment:
    """750 steps from a shipped file: each leg may run where the one before has left nothing but that."""
    return trained(f'float, leg {number}', 'float', start, seed=number, probe=None)


# A leg is added when the one before has been published; C1 says whether it is the last.
BEFORE = float_models.FLOAT
LEGS = [
    leg(1, float_models.FIRST),
    leg(2, 'checkpoints/mask-rcnn_swin-mini_float-16k-leg1.pth'),
    leg(3, 'checkpoints/mask-rcnn_swin-mini_float-16k-leg2.pth'),
    leg(4, 'checkpoints/mask-rcnn_swin-mini_float-16k-leg3.pth'),
    leg(5, 'checkpoints/mask-rcnn_swin-mini_float-16k-leg4.pth'),
    leg(6, 'checkpoints/mask-rcnn_swin-mini_float-16k-leg5.pth'),
    leg(7, 'checkpoints/mask-rcnn_swin-mini_float-16k-leg6.pth'),
    leg(8, 'checkpoints/mask-rcnn_swin-mini_float-16k-leg7.pth'),
]
# What the premise asked for (L13): window alignment behind the last leg.
LAST_LEG = 'checkpoints/mask-rcnn_swin-mini_float-16k-leg8.pth'
ALIGNED = trained('float, aligned', 'float-aligned', LAST_LEG, probe=None)
START = float_models.LONGER  # the aligned model, as it is published

QAT_TRAINING = trained('W4A3 QAT, 16 000 images', 'qat-w4a3', START)
# What it and its float twin left, published: an arm may be trained where nothing else of them is.
QAT_FILE = 'checkpoints/mask-rcnn_swin-mini_qat-w4a3-16k.pth'
QAT = replace(QAT_TRAINING.on('search', 'W4A3 QAT, as published'), starts_from=QAT_FILE)
FLOAT_TWIN = trained('float twin of QAT', 'qat-w4a3', START, probe=None, **NO_QUANTIZER)
TWIN_FILE = 'checkpoints/mask-rcnn_swin-mini_float-twin-16k.pth'
TWINS = [arm('float twin', 'saqa-w4a3', TWIN_FILE, seed, probe=None, **NO_QUANTIZER, **FIXED) for seed in TWIN_SEEDS]
CONTROLS = [arm('W4A3 control', 'saqa-w4a3', QAT_FILE, seed, **FIXED) for seed in SEEDS]
SAQAS = [arm('W4A3 SAQA', 'saqa-w4a3', QAT_FILE, seed) for seed in SEEDS]
RANDOMS = [arm('W4A3 SAQA, random ranking', 'saqa-w4a3', QAT_FILE, seed, **RANDOM) for seed in SEEDS]


def tuned(*trainings: Experiment) -> list[Experiment]:
    """The trainings, each followed by its evaluations on the splits that tuning may see."""
    return [row for training in trainings for row in (training, *(at(training, split) for split in TUNING))]


def sealed(*trainings: Experiment, low: float = 0.0) -> list[Experiment]:
    """The trainings' models on the test split of each style."""
    return [at(training, split, low) for training in trainings for split in SEALED]


STAGES = [
    Stage(
        'converged-float',
        'legs of 750 float steps on 16 000 images, and whether the last has brought anything',
        [BEFORE.on('search'), BEFORE, *(row for model in (*LEGS, ALIGNED) for row in (model, model.on('val')))],
        hours=1.2,
        tier='full',
        claims=['C1'],
        topics=['converged'],
        rank=60,
    ),
    Stage(
        'converged-gate',
        'W4A3, its float twin and five controls: whether the published gain could be seen',
        [QAT_TRAINING, *(at(QAT, split) for split in TUNING), *tuned(FLOAT_TWIN, *TWINS, *CONTROLS)],
        hours=7,
        tier='full',
        claims=['C2'],
        topics=['converged'],
        rank=61,
    ),
    Stage(
        'converged-saqa',
        'five seeds of SAQA beside their controls, on the test splits',
        [
            *tuned(*SAQAS),
            *sealed(QAT, *TWINS, *CONTROLS, *SAQAS),
            *sealed(*SAQAS, low=0.4),
        ],
        hours=5,
        tier='full',
        claims=['C3', 'C4', 'C5', 'C6', 'C7', 'C8'],
        topics=['converged'],
        rank=62,
    ),
    Stage(
        'converged-random',
        "SAQA by random ranking: whether the gain is the ranking's (of interest where C4 holds)",
        [*tuned(*RANDOMS), *sealed(*RANDOMS)],
        hours=4,
        tier='full',
        claims=['C9'],
        topics=['converged'],
        rank=63,
    ),
]
