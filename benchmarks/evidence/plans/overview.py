"""Every claim of the protocol beside what was published and what was found: docs/results/overview.md."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..claims import NOT_RUN
from ..experiment import Experiment
from ..render import COLOURS, Reader, Topic, table
from ..statistics import Interval
from . import ptq, qat
from .unseen import NAMES, SETS

NO_FIGURE = '-'
PUBLISHED, OWN = 'Claims with a published counterpart', 'Preconditions, controls and questions of our own'


@dataclass(frozen=True)
class Headline:
    """What a paper says in one line, and the claims that decide it: on val, and on pictures no choice was made on."""

    says: str
    val: str | None = None
    unseen: str | None = None


HEADLINES = (
    Headline('W4A8 with A4 low windows is lossless at 1.35x without training', 'T1', 'U1'),
    Headline('Mixed windows are better than uniform bits of equal mean, without training', 'T3', 'U2'),
    Headline('The same, trained: ratio 0.6 against uniform W4A3 of half the steps', 'Q12'),
    Headline('The same against W4A3 of as many steps', 'Q23'),
    Headline('SAQA gains at ratio 0 on as much uniform training', 'Q1', 'U4'),
    Headline('The same over seeds', 'Q8'),
    Headline('Ratio 0.4 (1.21x) is lossless against the model SAQA starts from', 'Q3', 'U5'),
    Headline('The same over seeds', 'Q9'),
    Headline('Ratio 0.4 is lossless against as much uniform training', 'Q4', 'U6'),
    Headline('The same over seeds', 'Q22'),
    Headline('Three tiers at 1.52x lose at most a point against the model they start from', 'Q17'),
    Headline('Three tiers at 1.52x lose at most a point against as much uniform training', 'Q18', 'U10'),
    Headline('Better than SparseViT at 1.21x', 'Q5', 'U7'),
    Headline('Better than SparseViT at 1.57x', 'Q6', 'U9'),
    Headline('Three tiers better than SparseViT at 1.52x', 'Q10', 'U11'),
    Headline('Three tiers better than SparseViT at 1.79x', 'Q11', 'U12'),
    Headline('Other pictures cost low windows less than skipped ones (val: corruptions; unseen: style)', 'R1', 'U13'),
    Headline('The same with the ranking reversed', 'R2', 'U14'),
    Headline('There, reversing the ranking loses more', 'R3', 'U15'),
    Headline('The ranking is better than reversed: W4A4, half the windows at A2, without training', 'T11', 'U3'),
    Headline('The ranking is better than reversed after SAQA', None, 'U8'),
    Headline('SAQA from W4A4 is better than from float', 'Q14'),
    Headline('Uniform-sum sampling is better than independent sampling', 'Q19'),
    Headline('SAQA raises the SQNR of the last stage (dB)', 'R4'),
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


def summarise(reader: Reader) -> dict[str, Any]:
    """Every claim once; where a page judged it, with the outcome and the page's name; the fronts of the picture."""
    from . import STAGES, TOPICS  # the plans gather this module too

    judged: dict[str, dict[str, Any]] = {}
    for topic in TOPICS:
        if topic.summarise is not summarise:
            for entry in topic.summarise(reader).get('claims', []):
                judged[entry['id']] = {**entry, 'page': topic.name}
    stages = {claim: stage for stage in STAGES for claim in stage.claims}
    rows = []
    for claim in reader.claims().values():
        stage = stages.get(claim.id)
        found = judged.get(claim.id) or {**claim.judge(None), 'page': None}
        hours = None if stage is None else stage.hours
        rows.append(
            {
                **found,
                'seeds': claim.seeds,
                'data': claim.data,
                'stage': stage.name if stage else None,
                'hours': hours,
            }
        )
    return {'claims': rows, 'fronts': {name: _front(reader, arm) for name, arm in FRONTS.items()}}


def _front(reader: Reader, arm: list[Experiment]) -> list[dict[str, Any]]:
    """Box AP on val against bit operations relative to W4A4 with every window high, those that were run."""
    unit = reader.row(W4A4)['result']
    rows = [reader.row(experiment) for experiment in arm]
    return [
        {'name': row['name'], 'bops': _operations(row['result']) / _operations(unit), 'box': row['result']['box']}
        for row in rows
        if row['result'] and unit
    ]


def _operations(result: dict[str, Any]) -> int:
    return result['cost']['bit_operations']['paper']['executed']


def markdown(summary: dict[str, Any]) -> str:
    """The page."""
    rows = summary['claims']
    counts = Counter(_kind(row['outcome']) for row in rows)
    parts = [
        _part(title, [row for row in rows if (row['published'] == NO_FIGURE) == (title == OWN)])
        for title in (PUBLISHED, OWN)
    ]
    total = ', '.join(f'{count} {outcome}' for outcome, count in counts.most_common())
    return '\n\n'.join(
        [
            '# Claims and outcomes',
            f"""{len(rows)} claims: {total}. What an outcome means and how intervals are made stands in
[protocol.md](protocol.md); margins were fixed there before the runs, except that W2 to W4 repeat measurements that were
known, and P and T were asked a second time, of the aligned model. A claim that was not run names the stage that runs it
and its hours on two CPU cores: `python benchmarks/experiments.py run --stage NAME`. The papers' main sentences, one row
each, stand in [results](../results.md).""",
            *parts,
        ]
    )


def headlines(summary: dict[str, Any]) -> str:
    """The papers' main sentences, one row each."""
    known = {row['id']: row for row in summary['claims']}
    header = ['what is claimed', 'published', 'margin', 'val', *NAMES, 'seeds', 'smallest effect', 'outcome']
    return table(header, [_headline(line, known) for line in HEADLINES])


def _headline(line: Headline, known: dict[str, dict[str, Any]]) -> list[Any]:
    on_val = known[line.val] if line.val else None
    unseen = known[line.unseen] if line.unseen else None
    decides = unseen if unseen and unseen['found'] else on_val or unseen
    assert decides is not None  # every headline names a claim
    sets = unseen['sets'] if unseen and unseen['found'] and unseen['sets'] else None
    cells = [_text(sets[name]) for name in SETS] if sets else [NO_FIGURE, NO_FIGURE, _text(unseen and unseen['found'])]
    found = decides['found']
    where = '' if decides is unseen else ' on val'
    return [
        f'{line.says} ({", ".join(name for name in (line.val, line.unseen) if name)})',
        decides['published'],
        decides['margin'],
        _text(on_val and on_val['found']),
        *cells,
        decides['seeds'],
        NO_FIGURE if found is None else f'{(found["high"] - found["low"]) / 2:.2f}',
        f'{_outcome(decides)}{where if found else ""}',
    ]


def _text(found: dict[str, Any] | None) -> str:
    return NO_FIGURE if found is None else str(Interval.from_dict(found))


def _kind(outcome: str) -> str:
    return outcome.split(':')[0]


def _part(title: str, rows: list[dict[str, Any]]) -> str:
    header = ['id', 'claim', 'published', 'margin', 'found [95 % interval]', 'seeds', 'data', 'outcome']
    return f'## {title}\n\n{table(header, [_cells(row) for row in rows])}'


def _outcome(row: dict[str, Any]) -> str:
    if row['outcome'] == NOT_RUN and row['stage']:
        return f'{NOT_RUN} (`{row["stage"]}`, {row["hours"]:g} h)'
    return f'**{row["outcome"]}**'


def _cells(row: dict[str, Any]) -> list[Any]:
    outcome = _outcome(row)
    if row['outcome'] != NOT_RUN and row['page']:
        outcome = f'[{outcome}]({row["page"]}.md)'
    shown = [_text(row['found']), row['seeds'], row['data'], outcome]
    return [row['id'], row['claim'], row['published'], row['margin'], *shown]


def plot(summary: dict[str, Any], figure: Any) -> None:
    """Box AP on val against bit operations, every family of models."""
    axes = figure.subplots()
    for number, (name, points) in enumerate(summary['fronts'].items()):
        if not points:
            continue
        points = sorted(points, key=lambda point: point['bops'])
        box = [point['box'] for point in points]
        errors = [[b['estimate'] - b['low'] for b in box], [b['high'] - b['estimate'] for b in box]]
        axes.errorbar([point['bops'] for point in points], [b['estimate'] for b in box], yerr=errors, ms=5, capsize=2,
                      fmt=f'{"osv^Dx*"[number]}-', color=COLOURS[number], label=name)  # fmt: skip
    axes.set(
        title='box AP on val, 95 % interval over pictures',
        xlabel="bit operations of the backbone (paper's count) / W4A4, every window high",
        ylabel='box AP',
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc='lower right')


TOPICS = [Topic('overview', summarise, markdown, plot, size=(8.5, 5.5), excerpt=headlines)]
