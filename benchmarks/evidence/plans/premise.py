"""What window ranking is worth with and without its premise, on two float models: docs/results/premise.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS

from ..comparisons import differences
from ..experiment import Experiment
from ..intervals import score
from ..page import Listing, Page, Summary, shown
from ..pictures import TITLE, beside
from ..reader import Reader
from ..stage import Stage
from .float_models import FLOAT, FLOAT_PLAIN, PLAIN
from .preconditions import WINDOWS, share_of_stage, windows
from .ptq import HARD, HARD_RANDOM, HARD_REVERSED, MIXED, RANDOM, REVERSED


def _on_plain(row: Experiment) -> Experiment:
    return replace(row.from_model(PLAIN), name=f'{row.name}, not aligned')


WINDOWS_PLAIN = _on_plain(WINDOWS)
# row: (aligned, not aligned)
ROWS = {
    'float': (FLOAT, FLOAT_PLAIN),
    **{
        name: (row, _on_plain(row))
        for name, row in {
            'W4A8/A4 at 1.35x, L2 ranking': MIXED,
            'the same, random': RANDOM,
            'the same, reversed': REVERSED,
            'W4A4/A2, half low, L2 ranking': HARD,
            'the same, ranking random': HARD_RANDOM,
            'the same, ranking reversed': HARD_REVERSED,
        }.items()
    },
}
# claim: (treatment, control)
PAIRS = {
    'W1': (FLOAT, FLOAT_PLAIN),
    'W2': (_on_plain(HARD), _on_plain(HARD_REVERSED)),
    'W3': (_on_plain(HARD), _on_plain(HARD_RANDOM)),
}
MODELS = ('aligned', 'not aligned')
STAGES_OF_SWIN = range(1, 5)

STAGES = [
    Stage(
        'premise',
        'the float model before window alignment, and what ranking is worth on it',
        [WINDOWS_PLAIN, *(experiment for pair in ROWS.values() for experiment in pair)],
        hours=0.3,
        claims=[*PAIRS, *(f'W4-{stage}' for stage in STAGES_OF_SWIN)],
        topics=['premise'],
        rank=11,
    )
]


TEXT = """\
MixA-Q presumes that windows with large activations hold the objects. In the small detector as its stock losses trained
it, two stages do the opposite. So it was trained on for an epoch with an auxiliary loss that ranks windows by the
object area in them (`WindowAlignedMaskRCNN`, ours); the result is the first float model, from which most pages start
([preconditions](preconditions.md)). The claims about rankings were first made, and contradicted, on the model before:
they stand here, so that nobody takes the premise for a property of any Swin. A model that was trained longer lost it
again and [got it back the same way](ptq_longer.md)."""


def shares(reader: Reader) -> list[list[Summary] | None]:
    """By model and stage: object area in the top half of windows over that in a random half."""
    found = [windows(reader, 'object_share', measured) for measured in (WINDOWS, WINDOWS_PLAIN)]
    return [[stage['against_chance'] for stage in one] or None for one in found]


def rows(reader: Reader) -> list[Summary]:
    """Box AP on both models."""
    matches = {name: [reader.matches(experiment) for experiment in pair] for name, pair in ROWS.items()}
    return [{'name': name, 'box': [one and score(one).as_dict() for one in pair]} for name, pair in matches.items()]


def plot(summary: Summary, figure: Any) -> None:
    """AP of both models, row by row."""
    axes = figure.subplots()
    for index, (label, shift) in enumerate(zip(MODELS, (-0.12, 0.12), strict=True)):
        found = [(number, row['box'][index]) for number, row in enumerate(summary['rows']) if row['box'][index]]
        heights = [number + shift for number, _ in found]
        beside(axes, heights, [box for _, box in found], color=COLOURS[index], label=label)
    axes.set_yticks(range(len(summary['rows'])), [row['name'] for row in summary['rows']])
    axes.invert_yaxis()
    axes.set(title=TITLE, xlabel='box AP')
    axes.legend(loc='upper left')


TOPICS = [
    Page(
        'premise',
        'With and without the premise',
        TEXT,
        {**differences(PAIRS), **{f'W4-{stage}': share_of_stage(stage, WINDOWS_PLAIN) for stage in STAGES_OF_SWIN}},
        [
            Listing(
                'shares',
                shares,
                ['stage', *MODELS],
                lambda found: [[s, *(shown(one and one[s - 1]) for one in found)] for s in STAGES_OF_SWIN],
                text='## Object area in the top half of windows by L2, over a random half',
            ),
            Listing(
                'rows',
                rows,
                ['model', *MODELS],
                lambda found: [[row['name'], *(shown(box) for box in row['box'])] for row in found if any(row['box'])],
                text='## Box AP on val\n\n95 % intervals over images; RepQ, backbone scope, *simulated*.',
                missing=lambda found: [row['name'] for row in found if not any(row['box'])],
            ),
        ],
        plot,
        size=(8.5, 4),
    )
]
