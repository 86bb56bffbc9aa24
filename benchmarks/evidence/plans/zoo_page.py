"""The page of the methods beside each other: docs/results/zoo.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mixaq_mmdet.engine.matches import Matches
from mixaq_mmdet.reporting.figures import COLOURS

from ..experiment import Experiment
from ..intervals import difference, score
from ..page import BITS, BOX, MASK, Column, Listing, Models, Page, Summary, interval_cells
from ..pictures import beside, legend
from ..reader import Reader
from .zoo import CLAIMS, EDGE_ROWS, FLOAT, FOUR, METHODS, SETTINGS, THREE, UNSEEN

GIGABYTE = 1e9
HEADINGS = {
    'four': '## W4A4',
    'three': '## W3A3',
    'low': '## W4A4, half the windows at A2',
    'detectors': '## Whole detector at W4A4',
}
PUBLISHED = {
    'float': (46.0, 48.5, 50.4, 51.9),
    'PTQ4ViT': (6.9, 26.7, 14.7, 0.5),
    'RepQ': (36.1, 42.6, 47.0, 49.3),
    'ERQ': (36.8, 43.4, 47.9, 50.0),
    'FIMAQ': (38.7, 44.2, 48.7, 50.4),
    'APHQ': (38.9, 44.1, 48.9, 50.3),
    'AdaLog': (39.1, 44.3, 48.2, 50.6),
    'GLFQ': (39.6, 44.3, 48.8, 50.6),
}
"""Box AP on COCO at W4A4, whole detector, as papers and re-runs of others report it."""
DETECTORS = ('Mask R-CNN Swin-T', 'Mask R-CNN Swin-S', 'Cascade Swin-T', 'Cascade Swin-S')
TEXT = """\
Which training-free method loses least? Mini Mask R-CNN on val (500 images), 32 calibration images of `calib`, one
calibration each; the backbone is quantized unless a heading says otherwise. All methods start from the same float model
and see the same images. *Against RepQ*: paired difference in box AP, 95 % interval over images. *Calibration* is by the
clock of one process on one core, *block forwards* are those of the busiest block per image, *memory* is the peak of the
process. Rows were made on different processors, some beside other work: minutes tell orders of magnitude, not which of
two similar methods is faster. Where a run was stopped and went on, these three are left out. *Converts*: whether the
backbone has an integer form (`tools/deploy.py convert`). FIMAQ, APHQ and GLFQ have `budget='small'`, which is ours:
their published budgets are longer. Logarithmic grids (RepQ's attention probabilities, AdaLog's results of GELU too)
have zero beside 2^bits powers, as in the released code. All AP is *simulated* (fake quantization).
[How to choose](../choose-a-method.md)."""


def _control_of(experiment: Experiment) -> Experiment | None:
    """The row of RepQ in the setting of a row; None for what stands beside the settings, and for RepQ itself."""
    rows = next((rows for rows in SETTINGS.values() if experiment in rows.values()), None)
    if rows is not None:
        return None if rows['RepQ'] == experiment else rows['RepQ']
    return EDGE_ROWS[0] if experiment == EDGE_ROWS[1] else FOUR['RepQ'] if experiment == EDGE_ROWS[2] else None


def more(reader: Reader, experiment: Experiment) -> Summary:
    """What a row has beside its AP: its difference to RepQ, what calibration took, whether it converts."""
    control = _control_of(experiment)
    matches, of_control = reader.matches(experiment), None if control is None else reader.matches(control)
    extras = (reader.result(experiment) or {}).get('extras', {})
    known = matches is not None and of_control is not None
    return {
        'against': difference(matches, of_control).as_dict() if known else None,
        'calibration': extras.get('calibration'),
        'converts': extras.get('converts'),
    }


def _effort(row: Summary) -> list[Any]:
    effort = row['result']['calibration']
    if effort is None or effort['blocks_taken_over']:
        return [None, None, None]
    memory = effort['peak_memory']
    return [effort['minutes'], effort['block_forwards'], None if memory is None else memory / GIGABYTE]


AGAINST = Column(('against RepQ', '95 %'), lambda row: interval_cells(row['result']['against']))
EFFORT = Column(('calibration, min', 'block forwards', 'memory, GB'), _effort)
CONVERTS = Column(('converts',), lambda row: [{True: 'yes', False: 'no', None: None}[row['result']['converts']]])


class Setting(Models):
    """A table of models below a heading, which is left out with it."""

    def markdown(self, found: Sequence[Summary]) -> str:
        return f'{HEADINGS[self.key]}\n\n{super().markdown(found)}'


def unseen(reader: Reader) -> list[Summary]:
    """The chosen rows on both test splits and pooled, with their differences to RepQ there."""
    return [{'name': row.name, 'sets': _on_sets(reader, row)} for row in UNSEEN]


def _on_sets(reader: Reader, row: Experiment) -> Summary | None:
    found = reader.on_both_styles(row)
    if found is None:
        return None
    control = _control_of(row)
    of_control = None if control is None else reader.on_both_styles(control)
    return {name: _compared(matches, of_control and of_control[name]) for name, matches in found.items()}


def _compared(matches: Matches, control: Matches | None) -> Summary:
    against = None if control is None else difference(matches, control).as_dict()
    return {'box': score(matches).as_dict(), 'against': against}


def _unseen_cells(row: Summary) -> list[Any]:
    sets = row['sets'].values()
    return [row['name'], *(cell for found in sets for cell in (found['box']['estimate'], _short(found['against'])))]


def _short(found: Summary | None) -> str | None:
    return None if found is None else f'{found["estimate"]:.2f} [{found["low"]:.2f}, {found["high"]:.2f}]'


def plot(summary: Summary, figure: Any) -> None:
    """Differences to RepQ of every method at W4A4 and at W3A3."""
    axes = figure.subplots()
    methods = [method for method in METHODS if method != 'RepQ']
    for number, (key, label, rows) in enumerate((('four', 'W4A4', FOUR), ('three', 'W3A3', THREE))):
        results = {row['name']: row['result'] for row in summary[key]}
        found = {place: results[rows[method].name] for place, method in enumerate(methods)}
        run = {place: result['against'] for place, result in found.items() if result and result['against']}
        places = [place + 0.2 * number for place in run]
        beside(axes, places, list(run.values()), color=COLOURS[number], label=label)
    axes.axvline(0, color='black', linewidth=0.8, linestyle='--')
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.set(xlabel='box AP against RepQ on val, 95 % interval over images')
    legend(axes)


COLUMNS = (BOX, AGAINST, MASK, EFFORT, CONVERTS)
TOPICS = [
    Page(
        'zoo',
        'Training-free methods beside each other',
        TEXT,
        CLAIMS,
        [
            *(Setting([FLOAT, *rows.values()] if key == 'four' else list(rows.values()), COLUMNS, key, more)
              for key, rows in SETTINGS.items()),
            Models(EDGE_ROWS, (BOX, AGAINST, BITS), 'edges', more),
            Listing(
                'unseen',
                unseen,
                ['model', 'test', 'against RepQ', 'test_b', 'against RepQ', 'both', 'against RepQ'],
                lambda found: [_unseen_cells(row) for row in found if row['sets']],
                '## Unseen images\n\nEight rows that were chosen before anything was run.',
                lambda found: [row['name'] for row in found if not row['sets']],
            ),
            Listing(
                'published',
                lambda reader: {name: list(values) for name, values in PUBLISHED.items()},
                ['published', *DETECTORS],
                lambda found: [[name, *values] for name, values in found.items()],
                '## Published figures\n\nNot ours, and not comparable with the tables above: box AP on COCO at W4A4, '
                'whole detector, from the 3x checkpoints, as papers and re-runs by others report it.',
            ),
        ],
        plot,
        size=(8, 5),
    )
]  # fmt: skip
