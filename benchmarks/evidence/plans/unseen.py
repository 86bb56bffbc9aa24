"""The headline claims on pictures that no choice was made on, in both styles: docs/results/unseen.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixaq_mmdet.engine.matches import Matches
from mixaq_mmdet.reporting.figures import COLOURS
from mixaq_mmdet.reporting.markdown import markdown_table

from ..claims import NOT_RUN
from ..comparisons import IMAGES, PAIR, SETS, Comparison, OnBothStyles, Reading, is_pair_of_trainings
from ..experiment import Experiment
from ..intervals import Interval, bootstrap_sets, score
from ..page import Listing, Page, Summary, decided, interval_cells, joined, not_run, over, shown, verdict
from ..pictures import beside, legend
from ..reader import Reader
from ..splits import SEALED
from ..stage import Stage
from .float_models import FLOAT
from .ptq import HARD, HARD_REVERSED, MIXED, W4A6, W4A8
from .qat import ADAPTED, CONTROL, PRUNED, QAT, SAQA, SKIPPED, at
from .qat import MIXED as TIERS
from .robustness import ARMS

NAMES = ('test (style A)', 'test_b (style B)', 'both styles')
LOW, LOW_REVERSED, SKIP, SKIP_REVERSED = ARMS.values()
# a training's own row is what it is at ratio 0
TRAINED, AFTER, LONGER = (at(model, model.name) for model in (QAT, SAQA, CONTROL))

# claim: (treatment, control)
PAIRS = {
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
    'U16': (AFTER, TRAINED),
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
        'U4 U5 U6 U7 U13 U16',
        16,
    ),
    stage('ranking-test', 'rankings reversed on the test splits', (LOW_REVERSED, SKIP_REVERSED, HARD, HARD_REVERSED),
          0.8, 'U3 U8 U14 U15', 17),
    stage('prune-test', 'three tiers and pruning on the test splits',
          (*TIERS.values(), *SKIPPED.values(), ADAPTED[0.8], PRUNED[0.8]), 1, 'U9 U10 U11 U12', 54),
]  # fmt: skip


def loss_of_style(more: Mapping[str, Matches], less: Mapping[str, Matches]) -> Interval:
    """Share of its AP that one arm loses from style A to style B minus that of another, in percent."""
    own, other = SEALED
    sets = [{f'{arm}_{split}': found[split] for arm, found in (('more', more), ('less', less))} for split in SEALED]

    def statistic(**ap: Any) -> Any:
        kept = {arm: ap[f'{arm}_{other}'] / ap[f'{arm}_{own}'] for arm in ('more', 'less')}
        return 100 * (kept['less'] - kept['more'])

    return bootstrap_sets(sets, statistic)


def style(more: Experiment, less: Experiment) -> Comparison:
    """Whether one arm loses more from style A to style B than another."""

    def read(reader: Reader) -> Interval | None:
        found = reader.on_both_styles(more), reader.on_both_styles(less)
        return None if None in found else loss_of_style(*found)

    return Reading(read, PAIR if is_pair_of_trainings(more, less) else IMAGES)


CLAIMS: dict[str, Comparison] = {
    **{name: OnBothStyles(*arms) for name, arms in PAIRS.items()},
    **{name: style(*arms) for name, arms in LOSSES.items()},
}
TEXT = """\
Mini Mask R-CNN on `test` (2000 images of the style that it was trained on), on `test_b` (2000 of another style) and
on all 4000 together. Nothing was chosen on them. A claim holds when it holds on the 4000 and is contradicted on neither
style. One seed: intervals are over images, and where the arms are two trainings, over images for this pair. U5 and
U16 compare with the model that SAQA starts from, as the paper does. U4 and U6 compare with as much uniform training,
which needs a degradation to recover ([Q7](qat.md)). All of this is *simulated*."""
BELOW = """\
*BOPs*: relative bit operations of the backbone on `test` by the paper's count, against the same bits with every window
high, at realised ratios; a count, not a speed."""


def rows(reader: Reader) -> list[Summary]:
    """Every model on each set."""
    found = []
    for row in ROWS:
        matches, result = reader.on_both_styles(row), reader.result(row.on(SEALED[0]))
        entry: Summary = {'name': row.name, 'sets': None, 'cost': None}
        if matches is not None and result is not None:
            entry['sets'] = {name: score(matches[name]).as_dict() for name in SETS}
            entry['cost'] = result['extras'].get('cost')
        found.append(entry)
    return found


def _cells(row: Summary) -> list[Any]:
    cells = [cell for name in SETS for cell in interval_cells(row['sets'][name])]
    cost = row['cost']
    return [row['name'], *cells, None if cost is None else cost['relative']['paper']['executed']]


def claims_on_sets(judged: Sequence[Summary]) -> str:
    """Claim by claim, with what each set says."""
    header = ['id', 'claim', 'metric', 'margin', *(f'{name} [95 %]' for name in NAMES), 'interval over', 'outcome']
    rows = [
        [c['id'], c['claim'], c['metric'], c['margin'], *_intervals(c), over(c), verdict(c)]
        for c in judged
        if c['outcome'] != NOT_RUN
    ]
    return joined(markdown_table(header, rows), not_run(c['id'] for c in judged if c['outcome'] == NOT_RUN))


def _intervals(claim: Summary) -> list[str | None]:
    if not claim.get('sets'):  # a number of both sets together
        return [None, None, shown(claim['found'])]
    decides = decided(claim)  # where a precondition fails, no set says anything
    return [f'{shown(found)} {found["outcome"] if decides else ""}'.strip() for found in claim['sets'].values()]


def plot(summary: Summary, figure: Any) -> None:
    """Differences of every claim that was run, on each set."""
    axes = figure.subplots()
    run = [claim for claim in summary['claims'] if claim.get('sets')]
    for number, name in enumerate(SETS):
        places = [row + 0.2 * (number - 1) for row in range(len(run))]
        found = [claim['sets'][name] for claim in run]
        beside(axes, places, found, fmt='os^'[number], color=COLOURS[number], label=NAMES[number])
    axes.axvline(0, color='black', linewidth=0.8, linestyle='--')
    axes.set_yticks(range(len(run)), [f'{claim["id"]}: {claim["metric"].removeprefix("AP, ")}' for claim in run])
    axes.invert_yaxis()
    axes.set(xlabel='difference in box AP, 95 % interval over images')
    legend(axes)


TOPICS = [
    Page(
        'unseen',
        'The headline claims on unseen images',
        TEXT,
        CLAIMS,
        [
            Listing(
                'rows',
                rows,
                ['model', *(cell for name in NAMES for cell in (name, '95 %')), 'BOPs'],
                lambda found: [_cells(row) for row in found if row['sets']],
                missing=lambda found: [row['name'] for row in found if not row['sets']],
                below=lambda found: BELOW,
            )
        ],
        plot,
        size=(9, 5.5),
        show_claims=claims_on_sets,
    )
]
