"""What must hold before claims about windows can be tested on mini-COCO: docs/results/preconditions.md."""

from __future__ import annotations

from statistics import median
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import Comparison, Reading
from ..experiment import Experiment
from ..intervals import SAMPLES, Interval, exactly, ratio_of_sets, score
from ..page import Listing, Page, Summary, shown
from ..pictures import beside
from ..reader import Reader
from ..splits import KINDS
from ..stage import Stage
from .float_models import CLEAN, CONFIG, CORRUPTED, FIRST, SEALED, SECOND

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
    'float-windows', 'measure', config=CONFIG, starts_from=FIRST, measure='evidence.measures.windows:measure'
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


VAL, TEST, TEST_B = CLEAN[0], *SEALED


def _accuracy(reader: Reader, experiment: Experiment) -> Summary:
    entry: Summary = {
        'model': 'second' if experiment in SECOND_ON else 'first',
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


def accuracy(reader: Reader) -> list[Summary]:
    """AP and its noise of the float models."""
    return [_accuracy(reader, experiment) for experiment in (*CLEAN, *PAGE_CORRUPTED, *SEALED, *SECOND_ON)]


def coverage(reader: Reader) -> Summary:
    """What objects cover, by split."""
    found: Summary = {}
    for experiment in (COVERAGE, SEALED_COVERAGE):
        found.update((reader.result(experiment) or {'extras': {'splits': {}}})['extras']['splits'])
    return found


def windows(reader: Reader, key: str, measured: Experiment = WINDOWS) -> list[Summary]:
    """What was measured of a float model's windows."""
    return (reader.result(measured) or {'extras': {}})['extras'].get(key, [])


def share_of_stage(stage: int, measured: Experiment = WINDOWS) -> Comparison:
    """Object area in the top half of a stage's windows over that in a random half."""

    def read(reader: Reader) -> Interval | None:
        found = windows(reader, 'object_share', measured)
        return Interval.from_dict(found[stage - 1]['against_chance']) if found else None

    return Reading(read)


def mean_coverage(reader: Reader) -> Interval | None:
    """Of every split; from the least end of an interval to the largest."""
    every = [Interval.from_dict(entry['coverage']) for entry in coverage(reader).values()]
    if not every:
        return None
    mean = sum(interval.estimate for interval in every) / len(every)
    return Interval(mean, min(i.low for i in every), max(i.high for i in every), 0.0, 0, 1)


def float_score(experiment: Experiment) -> Comparison:
    """AP of the float model on a split."""
    return Reading(lambda reader: (found := reader.matches(experiment)) and score(found))


def noise_of(experiment: Experiment) -> Comparison:
    """Its standard error over images."""
    return Reading(lambda reader: (found := reader.matches(experiment)) and exactly(score(found).standard_error))


def style_ratio(reader: Reader) -> Interval | None:
    """AP on the other style over that on its own."""
    own, other = (reader.matches(experiment) for experiment in (TEST, TEST_B))
    return None if own is None or other is None else ratio_of_sets(other, own)


def largest_range(measured: Experiment = WINDOWS) -> Comparison:
    """The largest over the median channel range, of the LayerNorm where it is largest."""

    def read(reader: Reader) -> Interval | None:
        ratios = [entry['ratio'] for entry in windows(reader, 'channel_range_ratio', measured)]
        return exactly(max(ratios)) if ratios else None

    return Reading(read)


CLAIMS: dict[str, Comparison] = {
    **{f'P1-{stage}': share_of_stage(stage) for stage in range(1, 5)},
    'P2': Reading(mean_coverage),
    'P3': float_score(VAL),
    'P4': Reading(style_ratio),
    'P5': noise_of(VAL),
    'P6': noise_of(TEST),
    'P7': largest_range(),
}
TEXT = """\
What has to be true of the data and of the float model before claims about windows can be tested on them; how a claim
is decided stands in [protocol.md](protocol.md)."""
ACCURACY = f"""\
## Accuracy of the float models, and its noise

AP in points with its standard error and 95 % interval over images ({SAMPLES} bootstrap resamples). The test splits are
refused without `--open-test`."""
COVERED = """\
## Object coverage

Per cent of an image under at least one object; sizes by COCO's limits of 32 and 96 pixels squared."""
SHARES = """\
## Object area by window rank

Per cent of all object area of val in the top half of a stage's windows, ranked by L2, by Std, at random, and the most
that any half could hold; last, L2's share over what a random half holds on average. Below 1, L2 prefers background."""
SIZES = 'small / medium / large %'
RANGES = """\
## Channel ranges of LayerNorm outputs

Largest range over the median range of the channels, for the LayerNorms that feed qkv, fc1 and patch merging."""


def _accuracy_cells(entry: Summary) -> list[Any]:
    cells = [entry[key] for key in ('model', 'split', 'style', 'images')]
    for found in (entry['bbox'], entry['segm']):
        cells += [found['estimate'], found['standard_error'], f'{found["low"]:.2f} .. {found["high"]:.2f}']
    return cells


def _coverage_cells(split: str, entry: Summary) -> list[Any]:
    quantiles = ' / '.join(f'{value:g}' for value in entry['coverage_quantiles_5_50_95'])
    sizes = ' / '.join(f'{100 * value:.0f}' for value in entry['small_medium_large'])
    return [split, entry['images'], entry['objects_per_image'], entry['coverage']['estimate'], quantiles, sizes]


def _share_cells(number: int, stage: Summary) -> list[Any]:
    shares = [100 * stage[name]['estimate'] for name in ('L2', 'Std', 'random', 'best')]
    return [number, *shares, shown(stage['against_chance'])]


def object_shares(measured: Experiment, key: str = 'object_share', text: str = SHARES) -> Listing:
    """The table of the object area by window rank."""
    return Listing(
        key,
        lambda reader: windows(reader, 'object_share', measured),
        ['stage', 'L2', 'Std', 'random', 'best possible', 'L2 against chance'],
        lambda found: [_share_cells(number, stage) for number, stage in enumerate(found, 1)],
        text=text,
        missing=lambda found: [] if found else [measured.name],
    )


def _by_stage(entries: list[Summary]) -> list[tuple[int, list[float]]]:
    return [(n, [e['ratio'] for e in entries if e['stage'] == n]) for n in sorted({e['stage'] for e in entries})]


def plot(summary: Summary, figure: Any) -> None:
    """AP by split, object share by stage, channel ranges by stage."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1.2, 1))
    _plot_accuracy(summary, left)
    _plot_shares(summary, middle)
    for stage, values in _by_stage(summary['channel_range_ratio']):
        right.scatter([stage] * len(values), values, color=COLOURS[0], s=22, alpha=0.7, linewidths=0)
    right.set(title='LayerNorm outputs', xlabel='stage', ylabel='largest / median channel range', ylim=(0, None))
    right.set_xticks([stage for stage, _ in _by_stage(summary['channel_range_ratio'])])


def _plot_accuracy(summary: Summary, axes: Any) -> None:
    rows = [entry for entry in summary['accuracy'] if entry['bbox']]
    for kind, colour, shift, label in (('bbox', COLOURS[0], -0.12, 'box'), ('segm', COLOURS[1], 0.12, 'mask')):
        heights = [number + shift for number in range(len(rows))]
        beside(axes, heights, [entry[kind] for entry in rows], color=colour, ms=4, capsize=2, label=label)
    names = [e['split'].removeprefix('ood/') + (' (second model)' if e['model'] == 'second' else '') for e in rows]
    axes.set(title='float AP, 95 % interval over images', xlabel='AP', yticks=range(len(rows)), yticklabels=names)
    axes.invert_yaxis()
    _legend_below(axes)


def _plot_shares(summary: Summary, axes: Any) -> None:
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


TOPICS = [
    Page(
        'preconditions',
        'Preconditions',
        TEXT,
        CLAIMS,
        [
            Listing(
                'accuracy',
                accuracy,
                ['model', 'split', 'style', 'images', 'box AP', 's.e.', '95 %', 'mask AP', 's.e.', '95 %'],
                lambda found: [_accuracy_cells(entry) for entry in found if entry['bbox']],
                text=ACCURACY,
                missing=lambda found: [f'{e["model"]}, {e["split"]}' for e in found if not e['bbox']],
            ),
            Listing(
                'coverage',
                coverage,
                ['split', 'images', 'objects per image', 'mean %', '5 / 50 / 95 % quantile', SIZES],
                lambda found: [_coverage_cells(split, entry) for split, entry in found.items()],
                text=COVERED,
                missing=lambda found: [] if found else [COVERAGE.name],
            ),
            object_shares(WINDOWS),
            Listing(
                'channel_range_ratio',
                lambda reader: windows(reader, 'channel_range_ratio'),
                ['stage', 'LayerNorms', 'least', 'median', 'most'],
                lambda found: [[n, len(v), min(v), median(v), max(v)] for n, v in _by_stage(found)],
                text=RANGES,
            ),
        ],
        plot,
        size=(13, 4.4),
    )
]
