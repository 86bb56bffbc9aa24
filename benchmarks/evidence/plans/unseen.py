"""The headline claims on pictures that no choice was made on, in both styles: docs/results/unseen.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixaq_mmdet.engine.matches import Matches

from ..claims import NOT_RUN, Claim
from ..experiment import Experiment
from ..render import COLOURS, Reader, Topic, interval_cells, table
from ..splits import SEALED
from ..stage import Stage
from ..statistics import Interval, bootstrap_sets, difference, outcome, outcome_on_pool, score
from .float_models import FLOAT
from .ptq import HARD, HARD_REVERSED, MIXED, W4A6, W4A8
from .qat import ADAPTED, CONTROL, PRUNED, QAT, SAQA, SKIPPED, at
from .qat import MIXED as TIERS
from .robustness import ARMS

POOL = 'both'
SETS = (*SEALED, POOL)
NAMES = ('test (style A)', 'test_b (style B)', 'both styles')
LOW, LOW_REVERSED, SKIP, SKIP_REVERSED = ARMS.values()
# a training's own row is what it is at ratio 0
TRAINED, AFTER, LONGER = (at(model, model.name) for model in (QAT, SAQA, CONTROL))

# claim: (treatment, control)
DIFFERENCES = {
    'U1': (MIXED, W4A8),
    'U2': (MIXED, W4A6),
    'U3': (HARD, HARD_REVERSED),
    'U4': (AFTER, LONGER),
    'U5': (LOW, TRAINED),
    'U6': (LOW, LONGER),
    'U7': (LOW, SKIP),
    'U8': (LOW, LOW_REVERSED),
    'U9': (ADAPTED[0.8], PRUNED[0.8]),
    'U10': (TIERS['1.52x'], LONGER),
    'U11': (TIERS['1.52x'], SKIPPED['1.52x']),
    'U12': (TIERS['1.79x'], SKIPPED['1.79x']),
}
# claim: the arm that loses more from style A to style B, the arm that loses less
LOSSES = {'U13': (SKIP, LOW), 'U14': (SKIP_REVERSED, LOW_REVERSED), 'U15': (LOW_REVERSED, LOW)}
ROWS = [
    FLOAT, W4A8, MIXED, W4A6, HARD, HARD_REVERSED, TRAINED, AFTER, LONGER, LOW, SKIP, LOW_REVERSED, SKIP_REVERSED,
    ADAPTED[0.8], PRUNED[0.8], *TIERS.values(), *SKIPPED.values(),
]  # fmt: skip


def on_both(*rows: Experiment) -> list[Experiment]:
    """Every row on the test split of each style."""
    return [row.on(split) for row in rows for split in SEALED]


def stage(name: str, title: str, rows: Sequence[Experiment], hours: float, claims: str, rank: int) -> Stage:
    """A stage of the full tier on the test splits."""
    return Stage(name, title, on_both(*rows), hours, 'full', claims.split(), ['unseen'], rank)


STAGES = [
    stage('ptq-test', 'MixA-Q without training on the test splits', (W4A8, MIXED, W4A6), 0.6, 'U1 U2', 15),
    stage(
        'qat-test',
        'training, SAQA and its controls on the test splits',
        (TRAINED, AFTER, LONGER, LOW, SKIP),
        1,
        'U4 U5 U6 U7 U13',
        16,
    ),
    stage('ranking-test', 'rankings reversed on the test splits', (LOW_REVERSED, SKIP_REVERSED, HARD, HARD_REVERSED),
          0.8, 'U3 U8 U14 U15', 17),
    stage('prune-test', 'three tiers and pruning on the test splits',
          (*TIERS.values(), *SKIPPED.values(), ADAPTED[0.8], PRUNED[0.8]), 1, 'U9 U10 U11 U12', 54),
]  # fmt: skip


def on_sets(reader: Reader, row: Experiment) -> dict[str, Matches] | None:
    """Matches of a row on each style's split and on both pooled; None unless both were run."""
    found = {split: reader.matches(row.on(split)) for split in SEALED}
    found[POOL] = reader.pooled([row.on(split) for split in SEALED])
    complete = {name: matches for name, matches in found.items() if matches is not None}
    return complete if len(complete) == len(SETS) else None


def judge_on_sets(claim: Claim, found: Mapping[str, Interval] | None) -> dict[str, Any]:
    """A claim decided on the pool, contradicted if either part contradicts it; with what each part says."""
    judged = claim.judge(None if found is None else found[POOL])
    if found is None:
        return {**judged, 'sets': None}
    said = {name: outcome(interval, claim.bound) for name, interval in found.items()}
    decided = outcome_on_pool(said[POOL], [said[split] for split in SEALED])
    sets = {name: {**interval.as_dict(), 'outcome': said[name]} for name, interval in found.items()}
    return {**judged, 'outcome': decided, 'sets': sets}


def loss_of_style(more: Mapping[str, Matches], less: Mapping[str, Matches]) -> Interval:
    """Share of its AP that one arm loses from style A to style B minus that of another, in percent."""
    own, other = SEALED
    sets = [{f'{arm}_{split}': found[split] for arm, found in (('more', more), ('less', less))} for split in SEALED]

    def statistic(**ap: Any) -> Any:
        kept = {arm: ap[f'{arm}_{other}'] / ap[f'{arm}_{own}'] for arm in ('more', 'less')}
        return 100 * (kept['less'] - kept['more'])

    return bootstrap_sets(sets, statistic)


def summarise(reader: Reader) -> dict[str, Any]:
    """The page's numbers."""
    claims = reader.claims()
    found = {row.name: on_sets(reader, row) for row in ROWS}
    judged = []
    for name, (treatment, control) in DIFFERENCES.items():
        treated, controls = found[treatment.name], found[control.name]
        known = treated is not None and controls is not None
        sets = {part: difference(treated[part], controls[part]) for part in treated} if known else None
        judged.append(judge_on_sets(claims[name], sets))
    for name, (more, less) in LOSSES.items():
        pair = found[more.name], found[less.name]
        judged.append({**claims[name].judge(None if None in pair else loss_of_style(*pair)), 'sets': None})
    return {'claims': judged, 'rows': [_row(reader, row, found[row.name]) for row in ROWS]}


def _row(reader: Reader, row: Experiment, found: Mapping[str, Matches] | None) -> dict[str, Any]:
    if found is None:
        return {'name': row.name, 'sets': None, 'cost': None}
    result = reader.result(row.on(SEALED[0]))
    assert result is not None  # its matches were read
    sets = {name: score(matches).as_dict() for name, matches in found.items()}
    return {'name': row.name, 'sets': sets, 'cost': result['extras'].get('cost')}


def markdown(summary: dict[str, Any]) -> str:
    """The page."""
    header = ['id', 'claim', 'metric', 'margin', *(f'{name} [95 %]' for name in NAMES), 'outcome']
    claims = [
        [c['id'], c['claim'], c['metric'], c['margin'], *_intervals(c), f'**{c["outcome"]}**']
        for c in summary['claims']
    ]
    rows = [_cells(row) for row in summary['rows']]
    columns = [cell for name in NAMES for cell in (name, '95 %')]
    return f"""# The headline claims on unseen pictures

Mini Mask R-CNN on `test` (2000 pictures of the style that it was trained on), on `test_b` (2000 of another style) and
on all 4000 together. Nothing was chosen on them. A claim holds when it holds on the 4000 and is contradicted on neither
style. One seed: intervals are over pictures. All of this is *simulated*.

{table(header, claims)}

{table(['model', *columns, 'BOPs'], rows)}

*BOPs*: relative bit operations of the backbone on `test` by the paper's count, against the same bits with every window
high, at realised ratios; a count, not a speed.
"""


def _intervals(claim: dict[str, Any]) -> list[str | None]:
    if claim['found'] is None:
        return [NOT_RUN, None, None]
    if claim['sets'] is None:  # a number of both sets together
        return [None, None, _text(claim['found'])]
    return [f'{_text(claim["sets"][name])} {claim["sets"][name]["outcome"]}' for name in SETS]


def _text(found: Mapping[str, Any]) -> str:
    return str(Interval.from_dict(found))


def _cells(row: dict[str, Any]) -> list[Any]:
    if row['sets'] is None:
        return [row['name'], NOT_RUN, *[None] * (2 * len(SETS))]
    cost = row['cost']
    cells = [cell for name in SETS for cell in interval_cells(row['sets'][name])]
    return [row['name'], *cells, None if cost is None else cost['relative']['paper']['executed']]


def plot(summary: dict[str, Any], figure: Any) -> None:
    """Differences of every claim that was run, on each set."""
    axes = figure.subplots()
    shown = [claim for claim in summary['claims'] if claim.get('sets')]
    for number, name in enumerate(SETS):
        points = [claim['sets'][name] for claim in shown]
        middle = [point['estimate'] for point in points]
        errors = [[p['estimate'] - p['low'] for p in points], [p['high'] - p['estimate'] for p in points]]
        places = [row + 0.2 * (number - 1) for row in range(len(shown))]
        axes.errorbar(middle, places, xerr=errors, fmt='os^'[number], color=COLOURS[number], ms=5, capsize=3,
                      ls='none', label=NAMES[number])  # fmt: skip
    axes.axvline(0, color='black', linewidth=0.8, linestyle='--')
    axes.set_yticks(range(len(shown)), [f'{claim["id"]}: {claim["metric"].removeprefix("AP, ")}' for claim in shown])
    axes.invert_yaxis()
    axes.set(xlabel='difference in box AP, 95 % interval over pictures')
    if shown:
        axes.legend(fontsize=8)


TOPICS = [Topic('unseen', summarise, markdown, plot, size=(9, 5.5))]
