"""Every claim of the protocol beside what was published and what was found: docs/results/overview.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS
from mixaq_mmdet.reporting.markdown import markdown_table

from ..claims import NOT_RUN
from ..comparisons import PAIR, SETS
from ..experiment import Experiment
from ..page import Facts, Page, Summary, decided, joined, over, shown, verdict
from ..pictures import MARKERS, TITLE, legend, upright
from ..reader import Reader
from . import ptq, qat
from .unseen import NAMES

NO_FIGURE = '-'
PUBLISHED, OWN = 'Claims with a published counterpart', 'Preconditions, controls and questions of our own'


@dataclass(frozen=True)
class Headline:
    """What a paper says in one line, and the claims that decide it: on val, and on images no choice was made on."""

    says: str
    val: str | None = None
    unseen: str | None = None


HEADLINES = (
    Headline('W4A8 with A4 low windows is lossless at 1.35x without training', 'T1', 'U1'),
    Headline('The same from the model that was trained longer', 'L1', 'L15'),
    Headline('Mixed windows are better than uniform bits of equal mean, without training', 'T3', 'U2'),
    Headline('The same from the model that was trained longer', 'L3', 'L16'),
    Headline('The same, trained: ratio 0.6 against uniform W4A3 of half the steps', 'Q12'),
    Headline('The same against W4A3 of as many steps', 'Q23'),
    Headline('SAQA gains at ratio 0 on the model that it starts from, as the paper compares', 'Q2', 'U16'),
    Headline('SAQA gains at ratio 0 on as much uniform training, the stronger comparison', 'Q1', 'U4'),
    Headline('The same over seeds', 'Q8'),
    Headline('The same at W4A3 from the model that was trained longer, five pairs', None, 'C4'),
    Headline('There, SAQA recovers the published share of the degradation', None, 'C5'),
    Headline('There, SAQA gains at ratio 0 on the model that it starts from, as the paper compares', None, 'C6'),
    Headline(
        'Ratio 0.4 (1.21x) is lossless against the model that SAQA starts from, as the paper compares', 'Q3', 'U5'
    ),
    Headline('The same over seeds', 'Q9'),
    Headline('The same at W4A3 from the model that was trained longer, five pairs', None, 'C7'),
    Headline('Ratio 0.4 is lossless against as much uniform training, the stronger comparison', 'Q4', 'U6'),
    Headline('The same over seeds', 'Q22'),
    Headline('The same at W4A3 from the model that was trained longer, five pairs', None, 'C8'),
    Headline('Three tiers at 1.52x lose at most a point against the model they start from', 'Q17'),
    Headline('Three tiers at 1.52x lose at most a point against as much uniform training', 'Q18', 'U10'),
    Headline('Better than SparseViT at 1.21x', 'Q5', 'U7'),
    Headline('Better than SparseViT at 1.57x', 'Q6', 'U9'),
    Headline('Three tiers better than SparseViT at 1.52x', 'Q10', 'U11'),
    Headline('Three tiers better than SparseViT at 1.79x', 'Q11', 'U12'),
    Headline('Other images cost low windows less than skipped ones (val: corruptions; unseen: style)', 'R1', 'U13'),
    Headline('The same with the ranking reversed', 'R2', 'U14'),
    Headline('There, reversing the ranking loses more', 'R3', 'U15'),
    Headline('The ranking is better than reversed: W4A4, half the windows at A2, without training', 'T11', 'U3'),
    Headline('The same from the model that was trained longer', 'L11', 'L17'),
    Headline('The ranking is better than reversed after SAQA', None, 'U8'),
    Headline('SAQA from W4A4 is better than from float', 'Q14'),
    Headline('Uniform-sum sampling is better than independent sampling', 'Q19'),
    Headline('SAQA raises the SQNR of the last stage (dB) over the model that it starts from', 'R4'),
    Headline('The same over as much uniform training', 'R5'),
    Headline('There, more in the important half of the windows', 'R6'),
    Headline(
        'SAQA raises it over as much uniform training, at W4A3 from the model that was trained longer, three pairs',
        'C10',
    ),
    Headline('There, more in the important half of the windows', 'C11'),
    Headline('AIQViT is better than RepQ at W4A4', 'V5'),
    Headline('The same at W3A3', 'V7'),
    Headline('Mix-QViT: bits per layer are better than uniform bits at four bits', 'M2'),
    Headline('The same at three bits', 'M3'),
    Headline('Bits per layer help bits per window', 'M4'),
)
# the fronts of the picture: models by the bits that they spend
FRONTS = {
    'uniform bits, no training (RepQ)': [ptq.W8A8, ptq.W4A8, ptq.W4A6, ptq.W4A4, ptq.W3A3],
    'MixA-Q W4A8/A4, no training': [ptq.W4A8, ptq.MILD, ptq.MIXED, ptq.STRONG],
    'pruning W4A8, no training': [ptq.W4A8, ptq.PRUNED],
    'W4A4 trained for as long as SAQA': [qat.CONTROL],
    'SAQA, low windows': [qat.SAQA, *qat.ADAPTED.values()],
    'SparseViT': [qat.SPARSEVIT, *qat.PRUNED.values(), *qat.SKIPPED.values()],
    'SAQA with pruning, three tiers': [qat.THREE, *qat.MIXED.values()],
}
W4A4 = ptq.W4A4


HEADER = ['what is claimed', 'published', 'margin', 'val', *NAMES, 'seeds', 'interval over', 'half-width', 'outcome']
INTRODUCTION = """\
What an outcome means and how intervals are made stands in [protocol.md](protocol.md); margins were fixed there before
the runs, except that W2 to W4 repeat measurements that were known, P and T were asked a second time, of the aligned
model, and a claim that was written late says so. *For this pair*: the arms are one training each and the interval is
over images; it does not tell what two other trainings would give. The papers' main sentences, one row each, stand in
[results](../results.md)."""
HOW = 'A stage, with its hours on two CPU cores, is run by `python benchmarks/experiments.py run --stage NAME`.'


def claims(reader: Reader) -> list[Summary]:
    """Every claim of the protocol once, with the page that judges it and the stage that runs it."""
    from . import STAGES, TOPICS  # the plans gather this module too

    pages = {claim: page for page in TOPICS for claim in page.claims}
    stages = {claim: stage for stage in STAGES for claim in stage.claims}
    rows = []
    for claim in reader.claims().values():
        page, stage = pages.get(claim.id), stages.get(claim.id)
        judged = reader.judge(claim.id, page and page.claims[claim.id])
        own = {'seeds': claim.seeds, 'data': claim.data, 'page': page and page.name}
        where = {'stage': stage and stage.name, 'hours': stage and stage.hours}
        rows.append({'sets': None, **judged, **own, **where})
    return rows


def fronts(reader: Reader) -> dict[str, list[Summary]]:
    """The fronts of the picture."""
    return {name: _front(reader, arm) for name, arm in FRONTS.items()}


def _front(reader: Reader, arm: list[Experiment]) -> list[Summary]:
    """Box AP on val against bit operations relative to W4A4 with every window high, those that were run."""
    unit = reader.row(W4A4)['result']
    rows = [reader.row(experiment) for experiment in arm]
    return [
        {'name': row['name'], 'bops': _operations(row['result']) / _operations(unit), 'box': row['result']['box']}
        for row in rows
        if row['result'] and unit
    ]


def _operations(result: Summary) -> int:
    return result['cost']['bit_operations']['paper']['executed']


def claims_text(rows: list[Summary]) -> str:
    """All claims, and by stage those that were not run."""
    counts = Counter(_kind(row) for row in rows)
    total = ', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())
    parts = [
        _part(title, [row for row in rows if (row['published'] == NO_FIGURE) == (title == OWN)])
        for title in (PUBLISHED, OWN)
    ]
    return joined(f'{len(rows)} claims: {total}.', INTRODUCTION, *parts, _not_run(rows))


def _kind(row: Summary) -> str:
    kind = row['outcome'].split(':')[0]
    of_a_pair = decided(row) and row.get('over') == PAIR
    return f'{kind} for one pair of trainings' if of_a_pair else kind


def _part(title: str, rows: list[Summary]) -> str:
    header = [
        'id',
        'claim',
        'published',
        'margin',
        'found [95 % interval]',
        'interval over',
        'seeds',
        'data',
        'outcome',
    ]
    cells = [_cells(row) for row in rows if row['outcome'] != NOT_RUN]
    return joined(f'## {title}', markdown_table(header, cells)) if cells else ''


def _cells(row: Summary) -> list[Any]:
    outcome = f'[{verdict(row)}]({row["page"]}.md)' if row['page'] else verdict(row)
    cells = [row[key] for key in ('id', 'claim', 'published', 'margin')]
    return [*cells, shown(row['found']), over(row), row['seeds'], row['data'], outcome]


def _not_run(rows: Iterable[Summary]) -> str:
    """What is missing, by the stage that runs it."""
    stages: dict[str, list[str]] = {}
    for row in rows:
        if row['outcome'] == NOT_RUN:
            where = f'`{row["stage"]}` ({row["hours"]:g} h)' if row['stage'] else 'no stage'
            stages.setdefault(where, []).append(row['id'])
    listed = '; '.join(f'{", ".join(ids)} by {stage}' for stage, ids in stages.items())
    return f'Not run: {listed}. {HOW}' if listed else ''


def headlines(summary: Summary) -> str:
    """The papers' main sentences, one row each."""
    known = {row['id']: row for row in summary['claims']}
    rows = {line: _decides(line, known) for line in HEADLINES}
    cells = [_headline(line, known) for line, row in rows.items() if row['outcome'] != NOT_RUN]
    return joined(markdown_table(HEADER, cells) if cells else '', _not_run(rows.values()))


def _decides(line: Headline, known: dict[str, Summary]) -> Summary:
    """The claim that decides a sentence: on unseen images where that was run, else on val."""
    rows = [known[name] for name in (line.unseen, line.val) if name]
    return next((row for row in rows if row['outcome'] != NOT_RUN), rows[-1])


def _headline(line: Headline, known: dict[str, Summary]) -> list[Any]:
    on_val = known[line.val] if line.val else None
    unseen = known[line.unseen] if line.unseen else None
    decides = _decides(line, known)
    sets = unseen['sets'] if unseen and unseen['found'] else None
    cells = [shown(sets[name]) for name in SETS] if sets else [None, None, shown(unseen and unseen['found'])]
    found = decides['found']
    where = '' if decides is unseen or found is None else ' on val'
    return [
        f'{line.says} ({", ".join(name for name in (line.val, line.unseen) if name)})',
        decides['published'],
        decides['margin'],
        shown(on_val and on_val['found']),
        *cells,
        decides['seeds'],
        over(decides),
        (found['high'] - found['low']) / 2 if over(decides) else None,
        f'{verdict(decides)}{where}',
    ]


def plot(summary: Summary, figure: Any) -> None:
    """Box AP on val against bit operations, every family of models."""
    axes = figure.subplots()
    for number, (name, points) in enumerate(summary['fronts'].items()):
        points = sorted(points, key=lambda point: point['bops'])
        style = {'fmt': f'{MARKERS[number]}-', 'color': COLOURS[number], 'capsize': 2, 'label': name}
        if points:
            upright(axes, [point['bops'] for point in points], [point['box'] for point in points], **style)
    axes.set(
        title=TITLE,
        xlabel="bit operations of the backbone (paper's count) / W4A4, every window high",
        ylabel='box AP',
    )
    legend(axes, loc='lower right')


TOPICS = [
    Page(
        'overview',
        'Claims and outcomes',
        parts=[Facts('claims', claims, claims_text), Facts('fronts', fronts, lambda found: '')],
        plot=plot,
        size=(8.5, 5.5),
        excerpt=headlines,
    )
]
