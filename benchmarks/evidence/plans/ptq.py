"""Training-free quantization on val, and MixA-Q against its rivals at equal cost: docs/results/ptq.md."""

from __future__ import annotations

from typing import Any

from ..experiment import Experiment
from ..render import COLOURS, NOT_RUN, Reader, Topic, claims_table, interval_cells, table
from ..stage import Stage
from ..statistics import difference
from .float_models import FLOAT, SHIPPED

RECIPE = 'configs/mini/mask-rcnn_swin-mini_{}.py'
COST = 'evidence.measures.cost:realised'
QUANT = 'model.backbone.quant.'
RATIOS = 'model.backbone.low_ratios'
REVERSED_RANKING = {'type': 'L2', 'reverse': True}
RANDOM_RANKING = {'type': 'Random', 'seed': 0}


def calibrated(name: str, recipe: str, **overrides: Any) -> Experiment:
    """Calibrate the shipped float model by a recipe, then evaluate it."""
    config = RECIPE.format(recipe)
    return Experiment(name, 'train', config=config, overrides=overrides, starts_from=SHIPPED, probe=COST)


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
DIFFERENCES = {
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
        claims=list(DIFFERENCES),
        topics=['ptq'],
        rank=10,
    )
]


def summarise(reader: Reader) -> dict[str, Any]:
    """The page's numbers."""
    return {'rows': [_row(reader, experiment) for experiment in ROWS], 'claims': reader.judge_pairs(DIFFERENCES)}


def _row(reader: Reader, experiment: Experiment) -> dict[str, Any]:
    row, matches, float_matches = reader.row(experiment), reader.matches(experiment), reader.matches(FLOAT)
    if matches is not None and float_matches is not None and experiment is not FLOAT:
        row['result']['loss'] = difference(matches, float_matches).as_dict()
    return row


def markdown(summary: dict[str, Any]) -> str:
    """The page."""
    rows = [_cells(row['name'], row['result']) for row in summary['rows']]
    header = ['model', 'box AP', '95 %', 'against float', '95 %', 'mask AP', 'mean act. bits', 'BOPs']
    return f"""# Training-free quantization

Mini Mask R-CNN on val (500 pictures), calibrated on 32 pictures of `calib`, one seed. Intervals are over pictures.
The row that ranks by Std is exploratory: no claim was made of it beforehand.
*BOPs*: relative bit operations of the backbone by the paper's count (MACs x 32 x activation bits) against the same bits
with every window high, at realised ratios; a count, not a speed. All of this is *simulated* (fake quantization).

{claims_table(summary['claims'])}

{table(header, rows)}
"""


def _cells(name: str, result: dict[str, Any] | None) -> list[Any]:
    if result is None:
        return [name, NOT_RUN, *[None] * 6]
    cost = result['cost']
    return [
        name,
        *interval_cells(result['box']),
        *interval_cells(result.get('loss')),
        result['mask'],
        None if cost is None else cost['mean_activation_bits']['executed'],
        None if cost is None else cost['relative']['paper']['executed'],
    ]


def plot(summary: dict[str, Any], figure: Any) -> None:
    """AP of every row, by falling mean activation bits."""
    axes = figure.subplots()
    shown = [row for row in summary['rows'] if row['result'] and row['result']['cost']]
    shown.sort(key=_activation_bits, reverse=True)
    for number, row in enumerate(shown):
        box = row['result']['box']
        mixed = row['result']['cost']['relative']['paper']['executed'] < 0.99
        colour = COLOURS[2] if 'pruning' in row['name'] else COLOURS[1] if mixed else COLOURS[0]
        errors = [[box['estimate'] - box['low']], [box['high'] - box['estimate']]]
        axes.errorbar([box['estimate']], [number], xerr=errors, fmt='o', color=colour, ms=5, capsize=3)
    axes.set_yticks(range(len(shown)), [f'{row["name"]} ({_activation_bits(row):.1f})' for row in shown])
    axes.invert_yaxis()
    found = summary['rows'][0]['result']
    if found:
        axes.axvline(found['box']['estimate'], color='black', linewidth=0.8, linestyle='--')
        axes.annotate(
            'float', (found['box']['estimate'], 1), xycoords=('data', 'axes fraction'), ha='center', va='bottom'
        )
    axes.set(xlabel='box AP on val, 95 % interval over pictures', ylabel='model (mean activation bits)')


def _activation_bits(row: dict[str, Any]) -> float:
    return row['result']['cost']['mean_activation_bits']['executed']


TOPICS = [Topic('ptq', summarise, markdown, plot, size=(8.5, 5))]
