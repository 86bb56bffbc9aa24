"""Training-free quantization on val, and MixA-Q against its rivals at equal cost: docs/results/ptq.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import differences
from ..experiment import Experiment
from ..intervals import difference
from ..page import BITS, BOPS, BOX, MASK, Column, Models, Page, Summary, interval_cells
from ..pictures import models_beside
from ..reader import Reader
from ..stage import Stage
from .float_models import FIRST, FLOAT

RECIPE = 'configs/mini/mask-rcnn_swin-mini_{}.py'
COST = 'evidence.measures.cost:realised'
QUANT = 'model.backbone.quant.'
RATIOS = 'model.backbone.low_ratios'
REVERSED_RANKING = {'type': 'L2', 'reverse': True}
RANDOM_RANKING = {'type': 'Random', 'seed': 0}


def calibrated(name: str, recipe: str, **overrides: Any) -> Experiment:
    """Calibrate the first float model by a recipe, then evaluate it."""
    config = RECIPE.format(recipe)
    return Experiment(name, 'train', config=config, overrides=overrides, starts_from=FIRST, probe=COST)


def of(calibration: Experiment, name: str, **overrides: Any) -> Experiment:
    """The same calibrated model under other ratios or another ranking."""
    return Experiment(
        name, 'evaluate', config=calibration.config, overrides=overrides, starts_from=calibration, probe=COST
    )


W8A8 = calibrated('RepQ W8A8', 'ptq-w8a8')
W4A8 = calibrated('RepQ W4A8', 'ptq-w4a8')
W4A6 = calibrated('RepQ W4A6', 'ptq-w4a8', **{f'{QUANT}a_bits': 6})
W4A4 = calibrated('RepQ W4A4', 'ptq-w4a4')
DETECTOR = calibrated('RepQ W4A4, whole detector', 'ptq-w4a4-detector')
PERCENTILE = calibrated('Percentile W4A8', 'ptq-w4a8', **{f'{QUANT}method': 'Percentile'})
MIXED = calibrated('MixA-Q W4A8/A4, 1.35x', 'mixaq-ptq-w4a8')
MILD = of(MIXED, 'MixA-Q W4A8/A4, 1.15x', **{RATIOS: [0.3] * 6})
STRONG = of(MIXED, 'MixA-Q W4A8/A4, 1.55x', **{RATIOS: [0.75] * 6})
REVERSED = of(MIXED, 'the same, ranking reversed', **{'model.backbone.importance': REVERSED_RANKING})
RANDOM = of(MIXED, 'the same, ranking random', **{'model.backbone.importance': RANDOM_RANKING})
PRUNED = of(
    MIXED,
    'pruning W4A8, 1.35x',
    **{RATIOS: 0.0, 'model.backbone.prune_ratios': [0.4, 0.1, 0.3, 0.35, 0.35, 0.25]},
)
# the bits at which something is lost
W3A3 = calibrated('RepQ W3A3', 'ptq-w4a4', **{f'{QUANT}w_bits': 3, f'{QUANT}a_bits': 3})
HARD = calibrated('MixA-Q W4A4/A2, half low', 'ptq-w4a4', **{f'{QUANT}low_a_bits': 2, RATIOS: 0.5})
HARD_REVERSED = of(
    HARD, 'half low, ranking reversed', **{**HARD.overrides, 'model.backbone.importance': REVERSED_RANKING}
)
HARD_RANDOM = of(HARD, 'half low, ranking random', **{**HARD.overrides, 'model.backbone.importance': RANDOM_RANKING})
ROWS = [FLOAT, W8A8, W4A8, PERCENTILE, W4A6, W4A4, W3A3, DETECTOR, MILD, MIXED, STRONG, REVERSED, RANDOM, PRUNED]
HARD_STD = of(HARD, 'half low, ranking by Std', **{**HARD.overrides, 'model.backbone.importance': {'type': 'Std'}})
ROWS += [HARD, HARD_REVERSED, HARD_RANDOM, HARD_STD]

# claim: (treatment, control)
PAIRS = {
    'T1': (MIXED, W4A8),
    'T2': (MILD, W4A8),
    'T3': (MIXED, W4A6),
    'T4': (MIXED, PRUNED),
    'T5': (MIXED, REVERSED),
    'T6': (MIXED, RANDOM),
    'T7': (W4A8, PERCENTILE),
    'T8': (W4A4, FLOAT),
    'T9': (W3A3, FLOAT),
    'T10': (HARD, W4A4),
    'T11': (HARD, HARD_REVERSED),
    'T12': (HARD, HARD_RANDOM),
}

STAGES = [
    Stage(
        'ptq',
        'training-free quantization and MixA-Q at equal cost, on val',
        ROWS,
        hours=0.7,
        claims=list(PAIRS),
        topics=['ptq'],
        rank=10,
    )
]


def lost_of(model: Experiment) -> Callable[[Reader, Experiment], Summary]:
    """What a quantized model has lost of a float model's AP."""

    def loss(reader: Reader, experiment: Experiment) -> Summary:
        matches, float_matches = reader.matches(experiment), reader.matches(model)
        if experiment == model or matches is None or float_matches is None:
            return {}
        return {'loss': difference(matches, float_matches).as_dict()}

    return loss


AGAINST_FLOAT = Column(('against float', '95 %'), lambda row: interval_cells(row['result'].get('loss')))
TEXT = """\
Mini Mask R-CNN on val (500 images), calibrated on 32 images of `calib`, one seed. Intervals are over images.
The row that ranks by Std is exploratory: no claim was made of it beforehand.
*BOPs*: relative bit operations of the backbone by the paper's count (MACs x 32 x activation bits) against the same bits
with every window high, at realised ratios; a count, not a speed. All of this is *simulated* (fake quantization)."""


def plot(summary: Summary, figure: Any) -> None:
    """AP of every row, by falling mean activation bits."""
    axes = figure.subplots()
    shown = [row for row in summary['rows'] if row['result'] and row['result']['cost']]
    shown.sort(key=_activation_bits, reverse=True)
    models_beside(axes, shown, _colour, lambda row: f'{row["name"]} ({_activation_bits(row):.1f})')
    found = summary['rows'][0]['result']
    if found:
        axes.axvline(found['box']['estimate'], color='black', linewidth=0.8, linestyle='--', label='float')
        axes.legend(loc='upper left')
    axes.set(ylabel='model (mean activation bits)')


def _activation_bits(row: Summary) -> float:
    return row['result']['cost']['mean_activation_bits']['executed']


def _colour(row: Summary) -> str:
    if 'pruning' in row['name']:
        return COLOURS[2]
    return COLOURS[1] if row['result']['cost']['relative']['paper']['executed'] < 0.99 else COLOURS[0]


TOPICS = [
    Page(
        'ptq',
        'Training-free quantization',
        TEXT,
        differences(PAIRS),
        [Models(ROWS, (BOX, AGAINST_FLOAT, MASK, BITS, BOPS), more=lost_of(FLOAT))],
        plot,
        size=(8.5, 5),
    )
]
