"""Bits per layer, alone and under bits per window, on val: docs/results/mixqvit.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmengine.config import Config

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import Comparison, Reading, differences
from ..experiment import REPOSITORY, Experiment
from ..intervals import Interval
from ..page import BITS, BOX, MASK, Column, Facts, Models, Page, Summary
from ..pictures import TITLE, upright
from ..reader import Reader
from ..stage import Stage
from .float_models import FIRST, FLOAT
from .ptq import QUANT, RATIOS, RECIPE, W4A4, calibrated
from .qat import trained


def bits_of(recipe: str) -> list[dict[str, Any]]:
    """The overrides that a recipe's allocation consists of."""
    found = Config.fromfile(REPOSITORY / RECIPE.format(recipe), import_custom_modules=False).overrides
    return [dict(override) for override in found]


def seeded(experiment: Experiment, seed: int) -> Experiment:
    """The same on other calibration pictures."""
    overrides = {**experiment.overrides, 'train_cfg.seed': seed}
    return replace(experiment, name=f'{experiment.name}, seed {seed}', seed=seed, overrides=overrides)


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

# neck and heads are RepQ's in both arms
HEADS = {
    'model.type': 'QuantDetector',
    'model.base': 'MaskRCNN',
    'model.detector_quant': {'method': 'RepQ', 'w_bits': 4, 'a_bits': 4},
}
DETECTOR_CLIPPED = calibrated(
    'MixQViT W4A4, uniform, heads by RepQ', 'ptq-w4a4-detector', **{f'{QUANT}method': 'MixQViT'}
)
DETECTOR_MEAN4 = calibrated('Mix-QViT, cost of W4A4, heads by RepQ', 'mixqvit-mp4', **HEADS)
PROXY = Experiment(
    'KL proxy and loss of AP, each layer alone at two bits',
    'measure',
    config=RECIPE.format('ptq-w4a4'),
    starts_from=FIRST,
    split='search',
    measure='evidence.measures.layers:proxy',
    settings={'bits': 2, 'pictures': [2, 8, 32], 'calibration_pictures': 32, 'images': 100, 'splits': ['calib']},
)
THREE_BITS = {f'{QUANT}w_bits': 3, f'{QUANT}a_bits': 3}
TRAINED3 = trained('OFQ W3A3, uniform', 'qat-w4a4', FIRST, **THREE_BITS)
TRAINED_MEAN3 = trained(
    'OFQ, bits per layer, cost of W3A3',
    'qat-w4a4',
    FIRST,
    **THREE_BITS,
    **{f'{QUANT}overrides': bits_of('mixqvit-mp3')},
)
SEEDS = (1, 2)
REPEATS = {row.name: [row, *(seeded(row, seed) for seed in SEEDS)] for row in ROWS if row is not FLOAT}
FULL = [DETECTOR_CLIPPED, DETECTOR_MEAN4, TRAINED3, TRAINED_MEAN3]

# claim: (treatment, control), paired by seed
PAIRS = {
    'M1': (CLIPPED4, REPQ4),
    'M2': (MEAN4, CLIPPED4),
    'M3': (MEAN3, CLIPPED3),
    'M4': (BOTH, WINDOWS),
    'M5': (BOTH, LAYERS),
    'M6': (DETECTOR_MEAN4, DETECTOR_CLIPPED),
    'M8': (TRAINED_MEAN3, TRAINED3),
    'M9': (REPEATS[MEAN4.name], REPEATS[CLIPPED4.name]),
    'M10': (REPEATS[BOTH.name], REPEATS[WINDOWS.name]),
}
TOPIC = ['mixqvit']

STAGES = [
    Stage(
        'mixqvit',
        'bits per layer, alone and under bits per window, on val',
        ROWS,
        hours=0.4,
        claims=['M1', 'M2', 'M3', 'M4', 'M5'],
        topics=TOPIC,
        rank=40,
    ),
    Stage(
        'mixqvit-proxy',
        'whether the KL proxy ranks layers as the loss of AP does',
        [PROXY],
        hours=0.8,
        tier='full',
        claims=['M7'],
        topics=TOPIC,
        rank=92,
    ),
    Stage(
        'mixqvit-detector',
        'bits per layer beside quantized neck and heads',
        [DETECTOR_CLIPPED, DETECTOR_MEAN4],
        hours=0.2,
        tier='full',
        claims=['M6'],
        topics=TOPIC,
        rank=93,
    ),
    Stage(
        'mixqvit-qat',
        'bits per layer under training with learned steps, at the cost of W3A3',
        [TRAINED3, TRAINED_MEAN3],
        hours=0.8,
        tier='full',
        claims=['M8'],
        topics=TOPIC,
        rank=94,
    ),
    Stage(
        'mixqvit-seeds',
        'the core rows on other calibration pictures',
        [row for rows in REPEATS.values() for row in rows[1:]],
        hours=0.8,
        tier='full',
        claims=['M9', 'M10'],
        topics=TOPIC,
        rank=95,
    ),
]


TEXT = """\
Mini Mask R-CNN on val (500 images), backbone scope, calibrated on 32 images of `calib`, one seed. Intervals over
images. *BOPs*: standard bit operations of the backbone (MACs x weight bits x activation bits) at realised ratios,
against uniform W4A4; a count, not a speed. All of this is *simulated* (fake quantization).

Importance by relevance has two degrees of freedom in a block: relevance is conserved, so fc1 and fc2 get the same
share, and so do qkv, proj and the product of attention and values."""


def proxy(reader: Reader) -> Summary | None:
    """What was measured of the KL proxy."""
    measured = reader.result(PROXY)
    return None if measured is None else measured['extras']


def correlation(reader: Reader) -> Interval | None:
    """Of the proxy's ranks with those of the loss of AP."""
    found = proxy(reader)
    return None if found is None else Interval.from_dict(found['correlation'])


def relative(reader: Reader, experiment: Experiment) -> Summary:
    """Standard bit operations over those of uniform W4A4."""
    own, reference = _operations(reader, experiment), _operations(reader, CLIPPED4)
    return {'relative': own / reference if own and reference else None}


def _operations(reader: Reader, experiment: Experiment) -> float | None:
    result = reader.result(experiment)
    cost = result and result['extras'].get('cost')
    return cost and cost['bit_operations']['standard']['executed']


def by_images(found: Summary | None) -> str:
    """The proxy's rank correlation from few images and from many."""
    if found is None:
        return ''
    shown = ', '.join(f'{value:.2f} from {number}' for number, value in found['by_pictures'].items())
    return f'Rank correlation over layers with the loss of AP, of the proxy: {shown} images.'


def plot(summary: Summary, figure: Any) -> None:
    """AP against standard bit operations."""
    axes = figure.subplots()
    shown = [row for row in summary['rows'] if row['result'] and row['result']['relative']]
    cost, height, place = None, 0.0, 0
    for row in sorted(shown, key=lambda row: (round(row['result']['relative'], 2), row['result']['box']['estimate'])):
        box, own = row['result']['box'], row['result']['relative']
        colour = COLOURS[1] if 'both' in row['name'] else COLOURS[2] if 'Mix-QViT' in row['name'] else COLOURS[0]
        # rows of equal cost stand beside each other, their labels above each other
        same = cost is not None and abs(own - cost) < 0.01
        place, height = (place + 1, max(box['estimate'], height + 0.6)) if same else (0, box['estimate'])
        cost = own
        upright(axes, [cost + 0.006 * place], [box], fmt='o', color=colour)
        axes.annotate(row['name'], (cost + 0.02, height), va='center', fontsize=7, color=colour)
    axes.set(title=TITLE, xlabel='bit operations / W4A4', ylabel='box AP')
    axes.margins(x=0.3)


STANDARD_BOPS = Column(('BOPs',), lambda row: [row['result']['relative']])
CLAIMS: dict[str, Comparison] = {**differences(PAIRS), 'M7': Reading(correlation)}
TOPICS = [
    Page(
        'mixqvit',
        'Bits per layer, under bits per window',
        TEXT,
        {name: CLAIMS[name] for name in sorted(CLAIMS, key=lambda name: int(name[1:]))},
        [Models([*ROWS, *FULL], (BOX, MASK, BITS, STANDARD_BOPS), more=relative), Facts('proxy', proxy, by_images)],
        plot,
        size=(8.5, 5),
    )
]
