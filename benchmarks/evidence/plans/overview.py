"""Every claim of the protocol beside what was published and what was found: docs/results/overview.md."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..claims import NOT_RUN
from ..render import Reader, Topic, table

NO_FIGURE = '-'
PUBLISHED, OWN = 'Claims with a published counterpart', 'Preconditions, controls and questions of our own'


def summarise(reader: Reader) -> dict[str, Any]:
    """Every claim once; where a page judged it, with the outcome and the page's name."""
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
    return {'claims': rows}


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
            f'{len(rows)} claims: {total}. What an outcome means and how intervals are made stands in '
            '[protocol.md](protocol.md);\nmargins were fixed there before the runs. A claim that was not run names '
            'the stage that runs it and its hours on two CPU cores:\n'
            '`python benchmarks/experiments.py run --stage NAME`.',
            *parts,
        ]
    )


def _kind(outcome: str) -> str:
    return outcome.split(':')[0]


def _part(title: str, rows: list[dict[str, Any]]) -> str:
    header = ['id', 'claim', 'published', 'margin', 'found [95 % interval]', 'seeds', 'data', 'outcome']
    return f'## {title}\n\n{table(header, [_cells(row) for row in rows])}'


def _cells(row: dict[str, Any]) -> list[Any]:
    found = row['found']
    text = NO_FIGURE if found is None else f'{found["estimate"]:.2f} [{found["low"]:.2f}, {found["high"]:.2f}]'
    outcome = f'**{row["outcome"]}**'
    if row['outcome'] == NOT_RUN and row['stage']:
        outcome = f'{NOT_RUN} (`{row["stage"]}`, {row["hours"]:g} h)'
    elif row['page']:
        outcome = f'[{outcome}]({row["page"]}.md)'
    return [row['id'], row['claim'], row['published'], row['margin'], text, row['seeds'], row['data'], outcome]


TOPICS = [Topic('overview', summarise, markdown)]
