"""Ratios from a budget: the chosen config against the uniform vector of equal cost, and what selection biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import Reading
from ..experiment import Experiment
from ..intervals import Interval, difference, interval_of, mean_over_images
from ..page import Listing, Page, Summary
from ..pictures import legend
from ..reader import Reader
from ..stage import Stage
from .ptq import MIXED

SEARCHED = Experiment(
    'search, relative BOPs <= 0.8',
    'measure',
    config=MIXED.config,
    starts_from=MIXED,
    split='val',
    measure='evidence.measures.search:search',
    settings={'budget': 0.8, 'splits': ['search', 'val']},
)


def searched(name: str, seed: int = 0, **settings: Any) -> Experiment:
    """The same search with other settings."""
    return replace(SEARCHED, name=name, seed=seed, settings={**SEARCHED.settings, **settings})


BUDGETS = [
    searched(f'search, relative BOPs <= {budget}, seed {seed}', seed, budget=budget)
    for budget in (0.7, 0.75, 0.8, 0.85, 0.9)
    for seed in range(3)
    if (budget, seed) != (0.8, 0)
]
PRUNING = [
    searched(f'search with pruning, relative BOPs <= {budget}', budget=budget, prune=True) for budget in (0.65, 0.75)
]
LATENCY = searched('search for latency', prune=True, budget=0.75, objectives='map,latency')
SURROGATE = searched('search by surrogate, relative BOPs <= 0.8', surrogate=True)
LANDSCAPE = replace(
    SEARCHED,
    name='search algorithms on a tabulated landscape',
    split='search',
    measure='evidence.measures.search:landscape',
    settings={'vectors': 300, 'repeats': 20, 'splits': ['search']},
)

STAGES = [
    Stage(
        'search',
        'one search with the defaults, its choice against uniform ratios of equal cost',
        [SEARCHED],
        hours=1.4,
        claims=['S1', 'S2'],
        topics=['search'],
        rank=40,
    ),
    Stage('search-grid', 'other budgets and seeds', BUDGETS, hours=18, tier='full', topics=['search'], rank=80),
    Stage(
        'search-more',
        'pruning and latency as objective',
        [*PRUNING, LATENCY],
        hours=4,
        tier='full',
        topics=['search'],
        rank=81,
    ),
    Stage(
        'search-surrogate',
        'a surrogate against the plain search, tabulated and for real',
        [LANDSCAPE, SURROGATE],
        hours=2,
        tier='full',
        claims=['S3'],
        topics=['search'],
        rank=82,
    ),
]

SEARCHES = [SEARCHED, *BUDGETS, *PRUNING, LATENCY, SURROGATE]


TEXT = """\
NSGA-II with the defaults (24 candidates, 10 generations, 100 images of `search`) on the mini model calibrated by RepQ
at W4A8 with A4 low windows. The chosen ratios are compared on val (500 images) with the uniform ratio of the same or
the next lower cost. *Gain*: box AP of the chosen ratios minus that of the uniform ones, paired, 95 % interval. The gain
on the search images beside the one on val shows the bias of selecting on them. *BOPs*: relative bit operations by the
paper's count, a count and not a speed."""
HEADER = ['search', 'ratios', 'BOPs', 'uniform', 'its BOPs', 'AP val', 'uniform', 'gain on val', 'on search images']


def paired(reader: Reader, experiment: Experiment, treatment: str, control: str) -> Interval | None:
    """Two arms of one search, which are kept as kinds of its matches."""
    if reader.result(experiment) is None:
        return None
    return difference(reader.matches(experiment, treatment), reader.matches(experiment, control))


def against(control: str) -> Reading:
    """The chosen ratios against another arm of the first search."""
    return Reading(lambda reader: paired(reader, SEARCHED, 'chosen', control))


def volume_ratio(reader: Reader) -> Interval | None:
    """Hypervolume of the surrogate over the plain search's, over repeats."""
    found = reader.result(LANDSCAPE)
    if found is None:
        return None
    volumes = found['extras']['landscape']['volumes']
    points, draws = mean_over_images(np.array([volumes['surrogate'], volumes['nsga']]).T)
    return interval_of(points[:1] / points[1:], (draws[:, 0] / draws[:, 1])[None], images=len(volumes['nsga']))


def _row(reader: Reader, experiment: Experiment) -> Summary:
    row: Summary = {'name': experiment.name, 'result': None}
    found = reader.result(experiment)
    if found is None:
        return row
    arms, search = found['extras']['arms'], found['extras']['search']

    def gain(treatment: str, control: str, where: str = '') -> Summary | None:
        interval = paired(reader, experiment, treatment + where, control + where)
        return None if interval is None else interval.as_dict()

    row['result'] = {
        'chosen': search['chosen'],
        'candidates': search['candidates'],
        'uniform_ratio': found['extras']['uniform_ratio'],
        'cost': {name: arm['cost']['relative']['paper']['executed'] for name, arm in arms.items()},
        'val': {name: arm['val'] for name, arm in arms.items()},
        'search': {name: arm['search'] for name, arm in arms.items()},
        'against_uniform': {'val': gain('chosen', 'uniform'), 'search': gain('chosen', 'uniform', ' on search')},
        'front': [{name: point[name] for name in ('map', 'bops') if name in point} for point in search['front']],
    }
    return row


def _cells(row: Summary) -> list[Any]:
    found = row['result']
    gains = [
        f'{gain["estimate"]:+.2f} [{gain["low"]:.2f}, {gain["high"]:.2f}]'
        for gain in (found['against_uniform'][split] for split in ('val', 'search'))
    ]
    chosen = found['chosen']
    ratios = ' '.join(f'{ratio:.1f}' for ratio in chosen['low_ratios'])
    if any(chosen['prune_ratios']):
        ratios += ' / prune ' + ' '.join(f'{ratio:.1f}' for ratio in chosen['prune_ratios'])
    cost, ap = found['cost'], found['val']
    numbers = [cost['chosen'], found['uniform_ratio'], cost['uniform'], ap['chosen'], ap['uniform']]
    return [row['name'], ratios, *numbers, *gains]


def plot(summary: Summary, figure: Any) -> None:
    """Fronts on the search images."""
    axes = figure.subplots()
    for number, row in enumerate(row for row in summary['rows'] if row['result']):
        points = [point for point in row['result']['front'] if len(point) == 2]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([p['bops'] for p in points], [p['map'] for p in points], 'o-', ms=3, color=colour, label=row['name'])
    axes.set(title='fronts on the search images', xlabel='relative BOPs', ylabel='box AP')
    legend(axes, fontsize=7, frameon=False)


TOPICS = [
    Page(
        'search',
        'From a budget to ratios',
        TEXT,
        {'S1': against('uniform'), 'S2': against('dense'), 'S3': Reading(volume_ratio, 'repeats')},
        [
            Listing(
                'rows',
                lambda reader: [_row(reader, experiment) for experiment in SEARCHES],
                HEADER,
                lambda found: [_cells(row) for row in found if row['result']],
                missing=lambda found: [row['name'] for row in found if not row['result']],
            )
        ],
        plot,
        size=(8, 4.5),
    )
]
