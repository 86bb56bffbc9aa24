"""W4A4 training and sparsity-aware adaptation on val, with the controls that decide them: docs/results/qat.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import Arm, differences
from ..experiment import Experiment
from ..intervals import score, smallest_effect, spread_interval
from ..page import Facts, Models, Page, Summary
from ..pictures import TITLE, legend, upright
from ..reader import Reader
from ..stage import Stage
from .float_models import FIRST, FLOAT, SECOND

RECIPE = 'configs/mini/mask-rcnn_swin-mini_{}.py'
COST = 'evidence.measures.cost:realised'
LOW, PRUNE = 'model.backbone.low_ratios', 'model.backbone.prune_ratios'
# the recipes have no DropPath now
AS_TRAINED = {'model.backbone.drop_path_rate': 0.1}
# what is evaluated is calibrated: a hook that calibrates the low branch anew would undo its training
NO_HOOKS = {'custom_hooks': []}
LOW_ANEW = {'custom_hooks': [{'type': 'CalibrationHook', 'num_images': 32, 'branches': 'low'}]}
ALL_ANEW = {'custom_hooks': [{'type': 'ExactResumeHook'}, {'type': 'CalibrationHook', 'num_images': 32}]}


def trained(name: str, recipe: str, start: Experiment | str, seed: int = 0, **overrides: Any) -> Experiment:
    """Train by a recipe; the result is the model at the recipe's ratios, all zero."""
    config, overrides = RECIPE.format(recipe), {**AS_TRAINED, **overrides}
    return Experiment(
        name, 'train', config=config, overrides=overrides, seed=seed, starts_from=start, probe=COST, split='val'
    )


def at(training: Experiment, name: str, low: Any = 0.0, prune: Any = 0.0, hooks: Any = None) -> Experiment:
    """A trained model at other ratios."""
    overrides = {**training.overrides, **(hooks or NO_HOOKS), LOW: low, PRUNE: prune}
    return Experiment(
        name,
        'evaluate',
        config=training.config,
        overrides=overrides,
        seed=training.seed,
        starts_from=training,
        probe=COST,
    )


# Prune ratios of the six pairs whose realised cost is that of a low ratio in all pairs: a pruned window saves what two
# low ones do, and the hundredths make up for rounding to whole windows (tests/benchmarks/test_qat_plan.py).
EQUAL_COST = {
    0.2: (0.15, 0.13, 0.10, 0.10, 0.10, 0.10),
    0.4: (0.18, 0.17, 0.25, 0.25, 0.25, 0.20),
    0.6: (0.26, 0.26, 0.32, 0.32, 0.32, 0.30),
    0.8: (0.38, 0.37, 0.44, 0.44, 0.44, 0.40),
}
# three tiers (low, prune) near the published 1.53x and 1.82x, and pruning alone at the same realised cost
TIERS = {'1.52x': (0.5, 0.15, (0.4,) * 6), '1.79x': (0.4, 0.3, (0.52, 0.50, 0.50, 0.50, 0.50, 0.49))}

QAT = trained('W4A4 QAT', 'qat-w4a4', FIRST)
SAQA = trained('SAQA, ratio 0', 'saqa-w4a4', QAT)
FIXED = {'optim_wrapper.sampling': 'fixed'}
CONTROL = trained('W4A4 QAT continued for as long', 'saqa-w4a4', QAT, **FIXED)
SPARSEVIT = trained('SparseViT W4A4, ratio 0', 'sparsevit', QAT)
ADAPTED = {ratio: at(SAQA, f'SAQA, ratio {ratio}', low=ratio) for ratio in EQUAL_COST}
PRUNED = {
    ratio: at(SPARSEVIT, f'SparseViT W4A4, cost of ratio {ratio}', prune=list(prune))
    for ratio, prune in EQUAL_COST.items()
}
# what as many steps do without quantizers: the first float model is not at its end
LONGER = replace(
    trained(
        'float, trained on for as long',
        'qat-w4a4',
        FIRST,
        **{'model.backbone.quant': None, 'custom_hooks': [{'type': 'ExactResumeHook'}]},
    ),
    probe=FLOAT.probe,
)
CORE = [FLOAT, QAT, SAQA, CONTROL, SPARSEVIT, *ADAPTED.values(), *PRUNED.values()]


def seeded(experiment: Experiment, seed: int, start: Experiment | str) -> Experiment:
    """The same with another seed; data order and sampled ratios change together, in both arms alike."""
    overrides = dict(experiment.overrides)
    if experiment is not QAT:
        overrides['optim_wrapper.seed'] = seed
    return replace(
        experiment, name=f'{experiment.name}, seed {seed}', seed=seed, starts_from=start, overrides=overrides
    )


QATS = [QAT, *(seeded(QAT, seed, FIRST) for seed in range(1, 5))]
SAQAS = [SAQA, *(seeded(SAQA, seed, QATS[seed]) for seed in range(1, 5))]
CONTROLS = [CONTROL, *(seeded(CONTROL, seed, QATS[seed]) for seed in range(1, 5))]
ADAPTED_SEEDS = [ADAPTED[0.4], *(at(SAQAS[seed], f'SAQA, ratio 0.4, seed {seed}', low=0.4) for seed in range(1, 5))]
SEEDED = (QATS, SAQAS, CONTROLS, ADAPTED_SEEDS)

THREE = trained('SAQA with pruning, ratio 0', 'saqa-prune-w4a4', QAT)
MIXED = {name: at(THREE, f'SAQA with pruning, {name}', low, prune) for name, (low, prune, _) in TIERS.items()}
SKIPPED = {name: at(SPARSEVIT, f'SparseViT W4A4, {name}', prune=list(prune)) for name, (_, _, prune) in TIERS.items()}
# why three tiers cost what they do: the pruning, or training with it? written after Q17 was known, without a claim
REASONS = [
    at(THREE, 'SAQA with pruning, ratio 0.8, none pruned', low=0.8),
    at(SAQA, 'SAQA without pruning, at 1.52x pruned', *TIERS['1.52x'][:2]),
]
THREE_BITS = {'model.backbone.quant.a_bits': 3}
W4A3 = trained('W4A3 QAT', 'qat-w4a4', FIRST, **THREE_BITS)
# SAQA has had twice as many steps
W4A3_LONGER = trained('W4A3 QAT continued for as long', 'saqa-w4a4', W4A3, **THREE_BITS, **FIXED)
WITHOUT = at(QAT, 'without SAQA, ratio 0.4', low=0.4, hooks=LOW_ANEW)
# the checkpoint that ablations start from, where QAT had to be trained again for them: how far it is from QAT's own
START = at(QAT, 'W4A4 QAT, checkpoint of the ablations')
FROM_FLOAT = trained('SAQA from float, ratio 0', 'saqa-w4a4', FIRST, **ALL_ANEW)
FROM_FLOAT_MIXED = at(FROM_FLOAT, 'SAQA from float, ratio 0.4', low=0.4)
INDEPENDENT = trained(
    'SAQA, independent sampling, ratio 0', 'saqa-w4a4', QAT, **{'optim_wrapper.sampling': 'independent'}
)
INDEPENDENT_MIXED = {
    ratio: at(INDEPENDENT, f'SAQA, independent sampling, ratio {ratio}', low=ratio) for ratio in EQUAL_COST
}
QAT_2 = trained('W4A4 QAT, second float model', 'qat-w4a4', SECOND)
SAQA_2 = trained('SAQA, second float model, ratio 0', 'saqa-w4a4', QAT_2)
CONTROL_2 = trained('W4A4 QAT continued, second float model', 'saqa-w4a4', QAT_2, **FIXED)
ABLATIONS = [
    W4A3, W4A3_LONGER, START, WITHOUT, FROM_FLOAT, FROM_FLOAT_MIXED, INDEPENDENT, *INDEPENDENT_MIXED.values(),
    QAT_2, SAQA_2, CONTROL_2,
]  # fmt: skip

# claim: (treatment, control), each one training or one a seed
PAIRS: dict[str, tuple[Arm, Arm]] = {
    'Q1': (SAQA, CONTROL),
    'Q2': (SAQA, QAT),
    'Q3': (ADAPTED[0.4], QAT),
    'Q4': (ADAPTED[0.4], CONTROL),
    'Q5': (ADAPTED[0.4], PRUNED[0.4]),
    'Q6': (ADAPTED[0.8], PRUNED[0.8]),
    'Q7': (QAT, FLOAT),
    'Q8': (SAQAS[:3], CONTROLS[:3]),
    'Q9': (ADAPTED_SEEDS[:3], QATS[:3]),
    'Q10': (MIXED['1.52x'], SKIPPED['1.52x']),
    'Q11': (MIXED['1.79x'], SKIPPED['1.79x']),
    'Q12': (ADAPTED[0.6], W4A3),
    'Q13': (ADAPTED[0.4], WITHOUT),
    'Q14': (ADAPTED[0.4], FROM_FLOAT_MIXED),
    'Q15': (SAQA_2, CONTROL_2),
    'Q16': (QAT, LONGER),
    'Q17': (MIXED['1.52x'], QAT),
    'Q18': (MIXED['1.52x'], CONTROL),
    'Q19': (ADAPTED[0.8], INDEPENDENT_MIXED[0.8]),
    'Q20': (SAQAS, CONTROLS),
    'Q21': (ADAPTED_SEEDS, QATS),
    'Q22': (ADAPTED_SEEDS[:3], CONTROLS[:3]),
    'Q23': (ADAPTED[0.6], W4A3_LONGER),
}
ANEW = f"""the training that the row starts from was run again for it, since its checkpoint was gone;
the same seed ends elsewhere on another processor. `{START.name}` is what it ended with."""
TOPIC = ['qat']
STAGES = [
    Stage(
        'qat',
        'W4A4 training, SAQA, its equal-training control and pruning at equal cost, on val',
        CORE,
        hours=2.1,
        claims=[f'Q{n}' for n in range(1, 8)],
        topics=TOPIC,
        rank=30,
    ),
    Stage(
        'qat-pilot',
        'the spread of W4A4 training over three seeds: the smallest effect that n seeds can show',
        QATS[:3],
        hours=0.9,
        tier='full',
        topics=TOPIC,
        rank=40,
    ),
    Stage(
        'qat-float',
        'the float model trained on for as many steps: what W4A4 training is worth measuring against',
        [FLOAT, QAT, LONGER],
        hours=0.4,
        tier='full',
        claims=['Q16'],
        topics=TOPIC,
        rank=31,
    ),
    Stage(
        'qat-seeds',
        'gain at ratio 0 and loss at ratio 0.4, three paired seeds',
        [arm for arms in SEEDED for arm in arms[:3]],
        hours=3.5,
        tier='full',
        claims=['Q8', 'Q9', 'Q22'],
        topics=TOPIC,
        rank=50,
    ),
    Stage(
        'qat-five-seeds',
        'the same with five',
        [arm for arms in SEEDED for arm in arms],
        hours=3.5,
        tier='full',
        claims=['Q20', 'Q21'],
        topics=TOPIC,
        rank=55,
    ),
    Stage(
        'qat-prune',
        'three tiers against pruning at equal cost',
        [THREE, *MIXED.values(), *SKIPPED.values(), *REASONS],
        hours=0.7,
        tier='full',
        claims=['Q10', 'Q11', 'Q17', 'Q18'],
        topics=TOPIC,
        rank=51,
    ),
    Stage(
        'qat-ablations',
        'W4A3, without SAQA, from float, independent sampling, the second float model',
        ABLATIONS,
        hours=3.6,
        tier='full',
        claims=['Q12', 'Q13', 'Q14', 'Q15', 'Q19', 'Q23'],
        topics=TOPIC,
        rank=52,
    ),
]
PAGE_ROWS = [
    *CORE,
    LONGER,
    *(row for rows in SEEDED for row in rows[1:]),
    THREE,
    *MIXED.values(),
    *SKIPPED.values(),
    *REASONS,
    *ABLATIONS,
]


TEXT = """\
Mini Mask R-CNN on val (500 images); 900 steps of 8 images for every training.
*BOPs*: relative bit operations of the backbone by the paper's count against the same bits with every window high, at
realised ratios; a count, not a speed. All of this is *simulated* (fake quantization).

*Continued for as long* is SAQA's recipe with its ratios held at 0: same start, steps, learning rate and data order.
Q2 and Q3 compare with the model that SAQA starts from, as the paper does. Q1 and Q4 compare with as much uniform
training: the stronger comparison, in which a gain is not longer training. Q1 and Q4 need a degradation that SAQA could
recover. None is known here, because the float model is not at the end of its training (Q7).

Most rows are one training each. An interval *over images, this pair* tells how far these two trainings differ on other
images, not how far two others would: no claim that one way of training is better than another rests on it."""


def pilot(reader: Reader) -> Summary | None:
    """What the spread over the pilot's seeds lets n paired seeds show."""
    found = [matches for experiment in QATS[:3] if (matches := reader.matches(experiment)) is not None]
    if len(found) < 3:
        return None
    points = [score(matches).estimate for matches in found]
    mean = sum(points) / len(points)
    spread = (sum((point - mean) ** 2 for point in points) / (len(points) - 1)) ** 0.5
    # the difference of two arms that vary independently; shared data order can only lower it
    effects = {str(n): smallest_effect(2**0.5 * spread, n) for n in (2, 3, 5, 10)}
    low, high = spread_interval(spread, len(points))
    return {'spread': spread, 'low': low, 'high': high, 'seeds': len(points), 'by_seeds': effects}


def effects(found: Summary | None) -> str:
    """The seeds' spread with its own interval, and what it means for differences."""
    if found is None:
        return 'Smallest effect that n seeds can show: not run (the pilot of three seeds).'
    shown = ', '.join(f'{effect:.2f} AP with {seeds}' for seeds, effect in found['by_seeds'].items())
    spread, own = f'{found["spread"]:.2f}', f'{found["low"]:.2f} to {found["high"]:.2f}'
    return (
        f'W4A4 training varies between seeds by a standard deviation of {spread} AP (n = {found["seeds"]}); the 95 % '
        f'interval of this spread is {own}.\nIf {spread} is right, the smallest effect that seeds can show is {shown}.'
    )


def plot(summary: Summary, figure: Any) -> None:
    """Box AP against cost: low windows beside skipped ones, and what they are measured against."""
    found = {row['name']: row['result'] for row in summary['rows'] if row['result']}
    axes = figure.subplots()
    curves = {
        'SAQA, low windows': [SAQA, *ADAPTED.values()],
        'SparseViT, pruned windows': [SPARSEVIT, *PRUNED.values()],
    }
    for colour, (label, arm) in zip(COLOURS, curves.items(), strict=False):
        points = [found[row.name] for row in arm if row.name in found]
        cost = [point['cost']['relative']['paper']['executed'] for point in points]
        upright(axes, cost, [point['box'] for point in points], color=colour, label=label)
    for style, row in zip((':', '--', '-.'), (FLOAT, QAT, CONTROL), strict=True):
        if row.name in found:
            axes.axhline(found[row.name]['box']['estimate'], color='0.4', ls=style, lw=1.2, label=row.name)
    axes.set(title=TITLE, xlabel='bit operations of the backbone / every window at four bits', ylabel='box AP')
    legend(axes, loc='lower right')


TOPICS = [
    Page(
        'qat',
        'Training at four bits, and adaptation to sampled ratios',
        TEXT,
        differences(PAIRS),
        [Facts('smallest_effects', pilot, effects), Models(PAGE_ROWS, anew=ANEW)],
        plot,
        size=(7.5, 5),
    )
]
