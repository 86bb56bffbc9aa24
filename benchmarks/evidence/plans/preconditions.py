"""What must hold before claims about windows can be tested on mini-COCO: docs/results/preconditions.md."""

from __future__ import annotations

from typing import Any

from ..experiment import Experiment
from ..render import COLOURS, NOT_RUN, Reader, Topic, claims_table, table
from ..splits import KINDS
from ..stage import Stage
from ..statistics import SAMPLES, Interval, exactly, ratio_of_sets, score
from .float_models import CLEAN, CONFIG, CORRUPTED, SEALED, SECOND, SHIPPED

PAGE_SEVERITY = 3
OPEN_SPLITS = ('train', 'calib', 'search', 'val', 'val_wide')

COVERAGE = Experiment(
    'object-coverage',
    'measure',
    measure='evidence.measures.coverage:measure',
    settings={'splits': list(OPEN_SPLITS)},
    split=None,
)
SEALED_COVERAGE = Experiment(
    'object-coverage-test',
    'measure',
    measure='evidence.measures.coverage:measure',
    settings={'splits': ['test', 'test_b']},
    split='test',
)
WINDOWS = Experiment(
    'float-windows', 'measure', config=CONFIG, starts_from=SHIPPED, measure='evidence.measures.windows:measure'
)
PAGE_CORRUPTED = [CORRUPTED[kind, PAGE_SEVERITY] for kind in KINDS]
SECOND_ON = [SECOND, *(SECOND.on(split) for split in ('search', 'test', 'test_b'))]

STAGES = [
    Stage(
        'preconditions',
        'AP and its noise, object coverage, object area by window rank, channel ranges',
        [*CLEAN, *PAGE_CORRUPTED, COVERAGE, WINDOWS],
        hours=0.3,
        claims=['P1-1', 'P1-2', 'P1-3', 'P1-4', 'P2', 'P3', 'P5', 'P7'],
        topics=['preconditions'],
        rank=2,
    ),
    Stage(
        'preconditions-test',
        'object coverage of the test splits',
        [SEALED_COVERAGE],
        hours=0.01,
        tier='full',
        claims=['P2'],
        topics=['preconditions'],
        rank=11,
    ),
]


def summarise(reader: Reader) -> dict[str, Any]:
    """The page's numbers."""
    accuracy = [_accuracy(reader, e) for e in (*CLEAN, *PAGE_CORRUPTED, *SEALED, *SECOND_ON)]
    coverage: dict[str, Any] = {}
    for experiment in (COVERAGE, SEALED_COVERAGE):
        coverage.update((reader.result(experiment) or {'extras': {'splits': {}}})['extras']['splits'])
    windows = (reader.result(WINDOWS) or {'extras': {}})['extras']
    return {
        'accuracy': accuracy,
        'coverage': coverage,
        'object_share': windows.get('object_share', []),
        'channel_range_ratio': windows.get('channel_range_ratio', []),
        'claims': _judged(reader, accuracy, coverage, windows),
    }


def _accuracy(reader: Reader, experiment: Experiment) -> dict[str, Any]:
    entry: dict[str, Any] = {
        'model': 'second' if experiment in SECOND_ON else 'shipped',
        'split': experiment.split,
        'style': 'B' if experiment.split == 'test_b' else 'A',
        'images': None,
        'bbox': None,
        'segm': None,
    }
    result = reader.result(experiment)
    if result is None:
        return entry
    scores = {kind: score(reader.matches(experiment, kind)).as_dict() for kind in ('bbox', 'segm')}
    return {**entry, 'images': result['images'], **scores}


def _judged(reader: Reader, accuracy: list[dict], coverage: dict, windows: dict) -> list[dict[str, Any]]:
    claims = reader.claims()
    found: dict[str, Interval | None] = dict.fromkeys(c for c in claims if c.startswith('P'))
    for number, stage in enumerate(windows.get('object_share', []), 1):
        found[f'P1-{number}'] = Interval.from_dict(stage['against_chance'])
    if coverage:
        every = [Interval.from_dict(entry['coverage']) for entry in coverage.values()]
        mean = sum(interval.estimate for interval in every) / len(every)
        found['P2'] = Interval(mean, min(i.low for i in every), max(i.high for i in every), 0.0, 0, 1)
    on = {entry['split']: entry['bbox'] for entry in accuracy if entry['model'] == 'shipped' and entry['bbox']}
    if 'val' in on:
        found['P3'] = Interval.from_dict(on['val'])
        found['P5'] = exactly(on['val']['standard_error'])
    if {'test', 'test_b'} <= set(on):
        found['P4'] = ratio_of_sets(reader.matches(SEALED[1]), reader.matches(SEALED[0]))
        found['P6'] = exactly(on['test']['standard_error'])
    if windows:
        found['P7'] = exactly(max(entry['ratio'] for entry in windows['channel_range_ratio']))
    return [claims[name].judge(interval) for name, interval in found.items()]


def markdown(summary: dict[str, Any]) -> str:
    """The page."""
    accuracy = [
        [e['model'], e['split'], e['style'], e['images'] or NOT_RUN, *_cells(e['bbox']), *_cells(e['segm'])]
        for e in summary['accuracy']
    ]
    coverage = [
        [
            split,
            found['images'],
            found['objects_per_image'],
            found['coverage']['estimate'],
            ' / '.join(f'{value:g}' for value in found['coverage_quantiles_5_50_95']),
            ' / '.join(f'{100 * value:.0f}' for value in found['small_medium_large']),
        ]
        for split, found in summary['coverage'].items()
    ]
    shares = [
        [
            number,
            *(100 * stage[name]['estimate'] for name in ('L2', 'Std', 'random', 'best')),
            _text(stage['against_chance']),
        ]
        for number, stage in enumerate(summary['object_share'], 1)
    ]
    ranges = [[stage, len(values), min(values), _median(values), max(values)] for stage, values in _by_stage(summary)]
    sizes = 'small / medium / large %'
    return f"""# Preconditions

What has to be true of the data and of the float model before claims about windows can be tested on them; how a claim
is decided stands in [protocol.md](protocol.md).

{claims_table(summary['claims'])}

## Accuracy of the float models, and its noise

AP in points with its standard error and 95 % interval over images ({SAMPLES} bootstrap resamples). The test splits are
refused without `--open-test`.

{table(['model', 'split', 'style', 'images', 'box AP', 's.e.', '95 %', 'mask AP', 's.e.', '95 %'], accuracy)}

## Object coverage

Per cent of a picture under at least one object; sizes by COCO's limits of 32 and 96 pixels squared.

{table(['split', 'images', 'objects per image', 'mean %', '5 / 50 / 95 % quantile', sizes], coverage)}

## Object area by window rank

Per cent of all object area of val in the top half of a stage's windows, ranked by L2, by Std, at random, and the most
that any half could hold; last, L2's share over what a random half holds on average. Below 1, L2 prefers background.

{table(['stage', 'L2', 'Std', 'random', 'best possible', 'L2 against chance'], shares)}

## Channel ranges of LayerNorm outputs

Largest range over the median range of the channels, for the LayerNorms that feed qkv, fc1 and patch merging.

{table(['stage', 'LayerNorms', 'least', 'median', 'most'], ranges)}
"""


def _cells(found: dict[str, Any] | None) -> list[Any]:
    if found is None:
        return [NOT_RUN, None, None]
    return [found['estimate'], found['standard_error'], f'{found["low"]:.2f} .. {found["high"]:.2f}']


def _text(found: dict[str, Any]) -> str:
    return f'{found["estimate"]:.2f} [{found["low"]:.2f}, {found["high"]:.2f}]'


def _by_stage(summary: dict[str, Any]) -> list[tuple[int, list[float]]]:
    entries = summary['channel_range_ratio']
    return [(n, [e['ratio'] for e in entries if e['stage'] == n]) for n in sorted({e['stage'] for e in entries})]


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def plot(summary: dict[str, Any], figure: Any) -> None:
    """AP by split, object share by stage, channel ranges by stage."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1.2, 1))
    _plot_accuracy(summary, left)
    _plot_shares(summary, middle)
    for stage, values in _by_stage(summary):
        right.scatter([stage] * len(values), values, color=COLOURS[0], s=22, alpha=0.7, linewidths=0)
    right.set(title='LayerNorm outputs', xlabel='stage', ylabel='largest / median channel range', ylim=(0, None))
    right.set_xticks([stage for stage, _ in _by_stage(summary)])


def _plot_accuracy(summary: dict[str, Any], axes: Any) -> None:
    rows = [entry for entry in summary['accuracy'] if entry['bbox']]
    for kind, colour, shift, label in (('bbox', COLOURS[0], -0.12, 'box'), ('segm', COLOURS[1], 0.12, 'mask')):
        found = [entry[kind] for entry in rows]
        middles = [entry['estimate'] for entry in found]
        errors = [
            [entry['estimate'] - entry['low'] for entry in found],
            [entry['high'] - entry['estimate'] for entry in found],
        ]
        heights = [number + shift for number in range(len(rows))]
        axes.errorbar(middles, heights, xerr=errors, fmt='o', color=colour, ms=4, capsize=2, label=label)
    names = [e['split'].removeprefix('ood/') + (' (second model)' if e['model'] == 'second' else '') for e in rows]
    axes.set(title='float AP, 95 % interval over images', xlabel='AP', yticks=range(len(rows)), yticklabels=names)
    axes.invert_yaxis()
    _legend_below(axes)


def _plot_shares(summary: dict[str, Any], axes: Any) -> None:
    bars = (
        ('random', 'random', COLOURS[5]),
        ('L2', 'by L2', COLOURS[0]),
        ('Std', 'by Std', COLOURS[1]),
        ('best', 'best possible', '#999999'),
    )
    width = 0.8 / len(bars)
    stages = range(1, len(summary['object_share']) + 1)
    for number, (name, label, colour) in enumerate(bars):
        heights = [100 * stage[name]['estimate'] for stage in summary['object_share']]
        positions = [stage + (number - (len(bars) - 1) / 2) * width for stage in stages]
        axes.bar(positions, heights, width, label=label, color=colour)
    axes.axhline(50, color='black', linewidth=0.8, linestyle='--')
    axes.set(
        title='object area in half of the windows',
        xlabel='stage',
        ylabel='% of the object area',
        ylim=(0, 100),
        xticks=list(stages),
    )
    _legend_below(axes)


def _legend_below(axes: Any) -> None:
    """Where it hides no data."""
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.14), ncols=4, fontsize=8, frameon=False)


TOPICS = [Topic('preconditions', summarise, markdown, plot, size=(13, 4.4))]
