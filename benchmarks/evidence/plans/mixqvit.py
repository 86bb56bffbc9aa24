"""Bits per layer, alone and under bits per window, on val: docs/results/mixqvit.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..experiment import Experiment
from ..render import COLOURS, NOT_RUN, Reader, Topic, claims_table, table
from ..stage import Stage
from ..statistics import difference, score
from .float_models import FLOAT
from .ptq import QUANT, RATIOS, W4A4, calibrated

REPQ4 = W4A4
CLIPPED4 = calibrated('MixQViT W4A4, uniform', 'ptq-w4a4', **{f'{QUANT}method': 'MixQViT'})
CLIPPED3 = calibrated(
    'MixQViT W3A3, uniform',
    'ptq-w4a4',
    **{f'{QUANT}method': 'MixQViT', f'{QUANT}w_bits': 3, f'{QUANT}a_bits': 3},
)
MEAN4 = calibrated('Mix-QViT, cost of W4A4', 'mixqvit-mp4')
MEAN3 = calibrated('Mix-QViT, cost of W3A3', 'mixqvit-mp3')
LAYERS = calibrated('Mix-QViT alone, 0.8 of W4A4', 'mixqvit-mp4-080')
# a uniform ratio at which the standard count is at most 0.8
WINDOWS = calibrated(
    'MixA-Q alone, 0.8 of W4A4', 'ptq-w4a4', **{f'{QUANT}method': 'MixQViT', f'{QUANT}low_a_bits': 2, RATIOS: 0.48}
)
BOTH = calibrated('both, 0.8 of W4A4', 'mixqvit-mixaq-mp4')
ROWS = [FLOAT, REPQ4, CLIPPED4, MEAN4, CLIPPED3, MEAN3, WINDOWS, LAYERS, BOTH]

# claim: (treatment, control)
DIFFERENCES = {
    'M1': (CLIPPED4, REPQ4),
    'M2': (MEAN4, CLIPPED4),
    'M3': (MEAN3, CLIPPED3),
    'M4': (BOTH, WINDOWS),
    'M5': (BOTH, LAYERS),
}


def seeded(experiment: Experiment, seed: int) -> Experiment:
    """The same on other calibration pictures."""
    overrides = {**experiment.overrides, 'train_cfg.seed': seed}
    return replace(experiment, name=f'{experiment.name}, seed {seed}', seed=seed, overrides=overrides)


STAGES = [
    Stage(
        'mixqvit',
        'bits per layer, alone and under bits per window, on val',
        ROWS,
        hours=0.4,
        claims=list(DIFFERENCES),
        topics=['mixqvit'],
        rank=40,
    ),
    Stage(
        'mixqvit-seeds',
        'the same on other calibration pictures',
        [seeded(row, seed) for seed in (1, 2) for row in ROWS if row is not FLOAT],
        hours=0.8,
        tier='full',
        rank=95,
    ),
]


def summarise(reader: Reader) -> dict[str, Any]:
    """The page's numbers."""
    claims = reader.claims()
    judged = []
    for name, pair in DIFFERENCES.items():
        treatment, control = (reader.matches(experiment) for experiment in pair)
        judged.append(claims[name].judge(difference(treatment, control) if treatment and control else None))
    rows = [_row(reader, experiment) for experiment in ROWS]
    reference = next((row['operations'] for row in rows if row['name'] == CLIPPED4.name), None)
    for row in rows:
        row['relative'] = row['operations'] / reference if row['operations'] and reference else None
    return {'rows': rows, 'claims': judged}


def _row(reader: Reader, experiment: Experiment) -> dict[str, Any]:
    row: dict[str, Any] = {'name': experiment.name, 'box': None, 'mask': None, 'operations': None, 'bits': None}
    result, matches = reader.result(experiment), reader.matches(experiment)
    if result is None or matches is None:
        return row
    row.update(box=score(matches).as_dict(), mask=100 * result['metrics']['coco/segm_mAP'])
    cost = result['extras'].get('cost')
    if cost is not None:
        row['operations'] = cost['bit_operations']['standard']['executed']
        row['bits'] = cost['mean_activation_bits']['executed']
    return row


def markdown(summary: dict[str, Any]) -> str:
    """The page."""
    header = ['model', 'box AP', '95 %', 'mask AP', 'mean act. bits', 'BOPs']
    rows = []
    for row in summary['rows']:
        box = row['box']
        cells = [box['estimate'], f'{box["low"]:.2f} .. {box["high"]:.2f}'] if box else [NOT_RUN, None]
        rows.append([row['name'], *cells, row['mask'], row['bits'], row['relative']])
    return f"""# Bits per layer, under bits per window

Mini Mask R-CNN on val (500 pictures), backbone scope, calibrated on 32 pictures of `calib`, one seed. Intervals over
pictures. *BOPs*: standard bit operations of the backbone (MACs x weight bits x activation bits) at realised ratios,
against uniform W4A4; a count, not a speed. All of this is *simulated* (fake quantization).

{claims_table(summary['claims'])}

{table(header, rows)}
"""


def plot(summary: dict[str, Any], figure: Any) -> None:
    """AP against standard bit operations."""
    axes = figure.subplots()
    for row in summary['rows']:
        if not row['box'] or not row['relative'] or row['name'] == FLOAT.name:
            continue
        box = row['box']
        colour = COLOURS[1] if 'both' in row['name'] else COLOURS[2] if 'Mix-QViT' in row['name'] else COLOURS[0]
        errors = [[box['estimate'] - box['low']], [box['high'] - box['estimate']]]
        axes.errorbar([row['relative']], [box['estimate']], yerr=errors, fmt='o', color=colour, ms=5, capsize=3)
        axes.annotate(
            row['name'], (row['relative'], box['estimate']), xytext=(6, 3), textcoords='offset points', fontsize=7
        )
    axes.set(title='box AP on val, 95 % interval over pictures', xlabel='bit operations / W4A4', ylabel='box AP')
    axes.margins(x=0.2)


TOPICS = [Topic('mixqvit', summarise, markdown, plot, size=(8.5, 5))]
