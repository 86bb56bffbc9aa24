"""SAQA's published gain at three bits, from a float model that has converged: the trainings, on 16 000 images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Arms:
    """The quantized trainings at some bits; all arms start from the published model.

    Attributes:
        bits: their name.
        training: QAT.
        published: its model as it is published, evaluated.
        controls, saqas, randoms: of each seed.
    """

    bits: str
    training: Experiment
    published: Experiment
    controls: list[Experiment]
    saqas: list[Experiment]
    randoms: list[Experiment]


def arms_at(bits: str, file: str | None = None, **overrides: Any) -> Arms:
    """The arms that start from what QAT at these bits has left.

    Args:
        bits: their name.
        file: what QAT has left, published, so that arms are trained on any machine; None: it is not yet.
        overrides: the bits, where they are not W4A3.
    """
    training = trained(f'{bits} QAT, 16 000 images', 'qat-w4a3', START, **overrides)
    start = file or training

    def seeds(name: str, **edits: Any) -> list[Experiment]:
        return [arm(f'{bits} {name}', 'saqa-w4a3', start, seed, **overrides, **edits) for seed in SEEDS]

    return Arms(
        bits,
        training,
        replace(training.on('search', f'{bits} QAT, as published'), starts_from=start),
        controls=seeds('control', **FIXED),
        saqas=seeds('SAQA'),
        randoms=seeds('SAQA, random ranking', **RANDOM),
    )


W4A3 = arms_at('W4A3', 'checkpoints/mask-rcnn_swin-mini_qat-w4a3-16k.pth')
W3A3 = arms_at('W3A3', **{'model.backbone.quant.w_bits': 3})
# The first of a claim's id, by the arms that it is about: C12 is C2 at W3A3.
ASKED = {'C': W4A3, 'C1': W3A3}
FLOAT_TWIN = trained('float twin of QAT', 'qat-w4a3', START, probe=None, **NO_QUANTIZER)
TWIN_FILE = 'checkpoints/mask-rcnn_swin-mini_float-twin-16k.pth'
TWINS = [arm('float twin', 'saqa-w4a3', TWIN_FILE, seed, probe=None, **NO_QUANTIZER, **FIXED) for seed in TWIN_SEEDS]


def tuned(*trainings: Experiment) -> list[Experiment]:
    """The trainings, each followed by its evaluations on the splits that tuning may see."""
    return [row for training in trainings for row in (training, *(at(training, split) for split in TUNING))]


def sealed(*trainings: Experiment, low: float = 0.0) -> list[Experiment]:
    """The trainings' models on the test split of each style."""
    return [at(training, split, low) for training in trainings for split in SEALED]


def stages_of(arms: Arms, claim: str, rank: int) -> list[Stage]:
    """The gate, SAQA, and the control of its mechanism, for the arms that claims of these ids are about."""
    suffix = '' if arms is W4A3 else f'-{arms.bits.lower()}'

    def stage(name: str, title: str, rows: list[Experiment], hours: float, numbers: Sequence[int], rank: int) -> Stage:
        claims = [f'{claim}{number}' for number in numbers]
        return Stage(f'converged-{name}{suffix}', title, rows, hours, 'full', claims, ['converged'], rank)

    gate = [
        arms.training,
        *(at(arms.published, split) for split in TUNING),
        *tuned(FLOAT_TWIN, *TWINS, *arms.controls),
    ]
    saqa = [
        *tuned(*arms.saqas),
        *sealed(arms.published, *TWINS, *arms.controls, *arms.saqas),
        *sealed(*arms.saqas, low=0.4),
    ]
    random = [*tuned(*arms.randoms), *sealed(*arms.randoms)]
    why = f"whether the gain is the ranking's (of interest where {claim}4 holds)"
    return [
        stage(
            'gate',
            f'{arms.bits}, its float twin and five controls: whether the published gain could be seen',
            gate,
            hours=7,
            numbers=[2],
            rank=rank,
        ),
        stage(
            'saqa',
            f'{arms.bits}: five seeds of SAQA beside their controls, on the test splits',
            saqa,
            hours=5,
            numbers=range(3, 9),
            rank=rank + 1,
        ),
        stage('random', f'{arms.bits}: SAQA by random ranking, {why}', random, hours=4, numbers=[9], rank=rank + 2),
    ]


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
    *(
        stage
        for rank, (claim, arms) in zip((61, 64), ASKED.items(), strict=True)
        for stage in stages_of(arms, claim, rank)
    ),
]
