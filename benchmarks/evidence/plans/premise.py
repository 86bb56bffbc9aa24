"""What window ranking is worth with and without its premise, on two float models: docs/results/premise.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..experiment import Experiment
from ..render import COLOURS, NOT_RUN, Reader, Topic, claims_table, table
from ..stage import Stage
from ..statistics import Interval, score
from .float_models import FLOAT, FLOAT_PLAIN, PLAIN
from .preconditions import WINDOWS
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
DIFFERENCES = {
    'W1': (FLOAT, FLOAT_PLAIN),
    'W2': (_on_plain(HARD), _on_plain(HARD_REVERSED)),
    'W3': (_on_plain(HARD), _on_plain(HARD_RANDOM)),
}
SHARES = [f'W4-{stage}' for stage in range(1, 5)]

STAGES = [
    Stage(
        'premise',
        'the float model before window alignment, and what ranking is worth on it',
        [WINDOWS_PLAIN, *(experiment for pair in ROWS.values() for experiment in pair)],
        hours=0.3,
        claims=[*DIFFERENCES, *SHARES],
        topics=['premise'],
        rank=11,
    )
]


def summarise(reader: Reader) -> dict[str, Any]:
    """The page's numbers."""
    claims = reader.claims()
    judged = reader.judge_pairs(DIFFERENCES)
    shares = [_shares(reader, experiment) for experiment in (WINDOWS, WINDOWS_PLAIN)]
    for name, found in zip(SHARES, shares[1] or [None] * len(SHARES), strict=True):
        judged.append(claims[name].judge(found and Interval.from_dict(found)))
    rows = []
    for name, pair in ROWS.items():
        matches = [reader.matches(experiment) for experiment in pair]
        rows.append({'name': name, 'box': [found and score(found).as_dict() for found in matches]})
    return {'rows': rows, 'shares': shares, 'claims': judged}


def _shares(reader: Reader, experiment: Experiment) -> list[dict[str, Any]] | None:
    result = reader.result(experiment)
    return result and [stage['against_chance'] for stage in result['extras']['object_share']]


def markdown(summary: dict[str, Any]) -> str:
    """The page."""
    rows = [[row['name'], *(_text(found, 2) for found in row['box'])] for row in summary['rows']]
    shares = [
        [stage + 1, *(_text(found and found[stage], 2) for found in summary['shares'])] for stage in range(len(SHARES))
    ]
    return f"""# With and without the premise

MixA-Q presumes that windows with large activations hold the objects. In the small detector as its stock losses trained
it, two stages do the opposite ([preconditions](preconditions.md) has the shipped model). So it was trained on for an
epoch with an auxiliary loss that ranks windows by the object area in them (`WindowAlignedMaskRCNN`, ours); the result
is the float model that every other page starts from. The claims about rankings were first made, and contradicted, on
the model before: they stand here, so that nobody takes the premise for a property of any Swin.

{claims_table(summary['claims'])}

## Object area in the top half of windows by L2, over a random half

{table(['stage', 'shipped (aligned)', 'not aligned'], shares)}

## Box AP on val

95 % intervals over pictures; RepQ, backbone scope, *simulated*.

{table(['model', 'shipped (aligned)', 'not aligned'], rows)}
"""


def _text(found: dict[str, Any] | None, digits: int) -> str:
    if found is None:
        return NOT_RUN
    return f'{found["estimate"]:.{digits}f} [{found["low"]:.{digits}f}, {found["high"]:.{digits}f}]'


def plot(summary: dict[str, Any], figure: Any) -> None:
    """AP of both models, row by row."""
    axes = figure.subplots()
    for index, (label, shift) in enumerate((('shipped (aligned)', -0.12), ('not aligned', 0.12))):
        found = [(number, row['box'][index]) for number, row in enumerate(summary['rows']) if row['box'][index]]
        middles = [box['estimate'] for _, box in found]
        lower = [box['estimate'] - box['low'] for _, box in found]
        upper = [box['high'] - box['estimate'] for _, box in found]
        heights = [number + shift for number, _ in found]
        axes.errorbar(
            middles, heights, xerr=[lower, upper], fmt='o', ms=5, capsize=3, color=COLOURS[index], label=label
        )
    axes.set_yticks(range(len(summary['rows'])), [row['name'] for row in summary['rows']])
    axes.invert_yaxis()
    axes.set(title='box AP on val, 95 % interval over pictures', xlabel='box AP')
    axes.legend(loc='upper left')


TOPICS = [Topic('premise', summarise, markdown, plot, size=(8.5, 4))]
