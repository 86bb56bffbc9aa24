"""A page as data: its arms, its claims and its text; what was run becomes tables, what was not one line below."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mixaq_mmdet.reporting.markdown import markdown_table

from .claims import NOT_RUN, NOT_TESTABLE
from .comparisons import PAIR, Comparison
from .experiment import Experiment
from .intervals import Interval
from .reader import Reader

Summary = dict[str, Any]
MARK = ' †'


class Part(Protocol):
    """A piece of a page: its numbers, kept in the summary under ``key``, and its text made from these."""

    key: str

    def summarise(self, reader: Reader) -> Any: ...

    def markdown(self, found: Any) -> str: ...


@dataclass(frozen=True)
class Column:
    """One or two columns of a table of models: headers, and the cells of a model that was run."""

    header: tuple[str, ...]
    cells: Callable[[Summary], Sequence[Any]]


def cost_column(header: str, *path: str, scale: float = 1.0) -> Column:
    """A number of the model's cost, such as ('relative', 'paper', 'executed'); a dash where nothing is counted."""

    def cells(row: Summary) -> list[Any]:
        value: Any = row['result']['cost']
        for key in path:
            value = value and value[key]
        return [None if value is None else value / scale]

    return Column((header,), cells)


BOX = Column(('box AP', '95 %'), lambda row: interval_cells(row['result']['box']))
MASK = Column(('mask AP',), lambda row: [row['result']['mask']])
BITS = cost_column('mean act. bits', 'mean_activation_bits', 'executed')
BOPS = cost_column('BOPs', 'relative', 'paper', 'executed')


@dataclass(frozen=True)
class Models:
    """A table of models.

    Args:
        arms: its rows.
        columns: beside the model's name.
        key: of its rows in the summary.
        more: further numbers of a model that was run, for columns of the page's own.
        anew: what the mark behind a model means whose start was trained again.
    """

    arms: Sequence[Experiment]
    columns: Sequence[Column] = (BOX, MASK, BITS, BOPS)
    key: str = 'rows'
    more: Callable[[Reader, Experiment], Mapping[str, Any]] = lambda reader, experiment: {}
    anew: str = ''

    def summarise(self, reader: Reader) -> list[Summary]:
        rows = []
        for experiment in self.arms:
            row = reader.row(experiment)
            if row['result']:
                row['result'].update(self.more(reader, experiment))
            if self.anew:
                row['starts_anew'] = reader.starts_anew(experiment)
            rows.append(row)
        return rows

    def markdown(self, found: Sequence[Summary]) -> str:
        header = ['model', *(name for column in self.columns for name in column.header)]
        shown = [row for row in found if row['result']]
        marked = any(row.get('starts_anew') for row in shown)
        rows = [
            [
                row['name'] + MARK * bool(row.get('starts_anew')),
                *(cell for column in self.columns for cell in column.cells(row)),
            ]
            for row in shown
        ]
        missing = not_run(row['name'] for row in found if not row['result'])
        table = markdown_table(header, rows) if rows else ''
        return joined(table, missing, f'{MARK.strip()}: {self.anew}' if marked else '')


@dataclass(frozen=True)
class Listing:
    """A table of the page's own.

    Args:
        key: of its numbers in the summary.
        read: these numbers.
        header: of its columns.
        rows: their cells, from the numbers.
        text: stands above, with a heading where the part has one.
        missing: names of what was not run, from the numbers.
        below: stands below, from the numbers.
    """

    key: str
    read: Callable[[Reader], Any]
    header: Sequence[str]
    rows: Callable[[Any], Iterable[Sequence[Any]]]
    text: str = ''
    missing: Callable[[Any], Iterable[str]] = lambda found: ()
    below: Callable[[Any], str] = lambda found: ''

    def summarise(self, reader: Reader) -> Any:
        return self.read(reader)

    def markdown(self, found: Any) -> str:
        rows, missing = list(self.rows(found)), not_run(self.missing(found))
        listed = markdown_table(self.header, rows) if rows else ''
        return joined(self.text, listed, missing, self.below(found)) if listed or missing else ''


@dataclass(frozen=True)
class Facts:
    """A paragraph of the page's own."""

    key: str
    read: Callable[[Reader], Any]
    text: Callable[[Any], str]

    def summarise(self, reader: Reader) -> Any:
        return self.read(reader)

    def markdown(self, found: Any) -> str:
        return self.text(found)


@dataclass(frozen=True)
class Page:
    """One page ``docs/results/<name>.{json,md,png}``.

    Args:
        name: file name without ending.
        title: its heading.
        text: stands above the claims.
        claims: what decides each claim of the page, by the claim's id in the protocol.
        parts: what follows the claims.
        plot: draws the summary into an empty matplotlib figure; None: no picture.
        size: of the picture in inches.
        show_claims: the table of the claims' entries.
        excerpt: turns the summary into what ``docs/results.md`` shows of it, between comments that name the page.
    """

    name: str
    title: str
    text: str = ''
    claims: Mapping[str, Comparison] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    plot: Callable[[Summary, Any], None] | None = None
    size: tuple[float, float] = (9, 4)
    show_claims: Callable[[Sequence[Summary]], str] = lambda judged: claims_table(judged)
    excerpt: Callable[[Summary], str] | None = None

    def summarise(self, reader: Reader) -> Summary:
        """The page's numbers."""
        judged = [reader.judge(name, comparison) for name, comparison in self.claims.items()]
        return {'claims': judged, **{part.key: part.summarise(reader) for part in self.parts}}

    def markdown(self, summary: Summary) -> str:
        """The page's text."""
        claims = self.show_claims(summary['claims']) if self.claims else ''
        parts = [part.markdown(summary[part.key]) for part in self.parts]
        return joined(f'# {self.title}', self.text, claims, *parts)


def claims_table(judged: Sequence[Summary]) -> str:
    """The outcome of claims as a table."""
    header = ['id', 'claim', 'metric', 'margin', 'found [95 % interval]', 'interval over', 'outcome']
    rows = [
        [entry['id'], entry['claim'], entry['metric'], entry['margin'], shown(entry['found']), over(entry),
         verdict(entry)]
        for entry in judged
        if entry['outcome'] != NOT_RUN
    ]  # fmt: skip
    return joined(
        markdown_table(header, rows) if rows else '', not_run(e['id'] for e in judged if e['outcome'] == NOT_RUN)
    )


def verdict(entry: Summary) -> str:
    """A claim's outcome; an interval of one pair of trainings decides nothing beyond this pair."""
    of_the_pair = ' for this pair' if entry.get('over') == PAIR and decided(entry) else ''
    return f'**{entry["outcome"]}**{of_the_pair}'


def decided(entry: Summary) -> bool:
    """Whether an interval decided the claim: it was run, and can be tested here."""
    return entry['found'] is not None and not entry['outcome'].startswith(NOT_TESTABLE)


def over(entry: Summary) -> str | None:
    """What a claim's interval is over; None where there is none."""
    found = entry['found']
    return None if found is None or found['low'] == found['high'] else entry.get('over')


def interval_cells(found: Mapping[str, float] | None) -> list[Any]:
    """An interval's estimate and its ends."""
    return [None, None] if found is None else [found['estimate'], f'{found["low"]:.2f} .. {found["high"]:.2f}']


def shown(found: Mapping[str, Any] | None) -> str | None:
    """An interval in a cell."""
    return None if found is None else str(Interval.from_dict(found))


def not_run(names: Iterable[str]) -> str:
    """The line below a table; empty where everything was run. Repeats of one arm are named together."""
    repeats: dict[str, list[str]] = {}
    for name in names:
        found = re.fullmatch(r'(.+, (?:seed|severity)) (\d+)', name)
        repeats.setdefault(found[1] if found else name, []).extend([found[2]] if found else [])
    listed = '; '.join(' '.join([arm, ', '.join(numbers)]).strip() for arm, numbers in repeats.items())
    return f'Not run: {listed}.' if listed else ''


def joined(*parts: str) -> str:
    """Paragraphs, without the empty ones."""
    return '\n\n'.join(text for part in parts if (text := part.strip()))
