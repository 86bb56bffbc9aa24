"""Pages: a summary in JSON, its table in Markdown, its picture, all from result files and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixaq_mmdet.engine.matches import Matches, pool

from .claims import NOT_RUN, Claim, read_claims
from .experiment import REPOSITORY, Experiment, fingerprint
from .statistics import Interval, difference, score
from .store import Store, write_json, write_text

# Okabe and Ito's palette: told apart by every kind of colour vision
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')


Arm = Experiment | Sequence[Experiment]


@dataclass
class Reader:
    """Results by experiment. Results of one page must have seen the same data.

    Pages that share a reader share their matches, and with them the resamples that take most of a rendering's time.
    """

    store: Store
    repository: Path = REPOSITORY
    _data: dict[str, tuple[str, str]] = field(default_factory=dict)
    _matches: dict[str, Mapping[str, Matches]] = field(default_factory=dict)
    _pooled: dict[tuple[str, ...], Matches] = field(default_factory=dict)

    def result(self, experiment: Experiment) -> dict[str, Any] | None:
        """The result file, None where it was not run."""
        key = fingerprint(experiment, self.repository)
        if not self.store.has(key):
            return None
        found = self.store.read(key)
        for split, digest in found.get('data', {}).items():
            name, known = self._data.setdefault(split, (found['name'], digest))
            if known != digest:
                raise ValueError(
                    f'split {split!r} differs between the results {name!r} and {found["name"]!r}; '
                    f'delete the outdated one from {self.store.runs} and run it again'
                )
        return found

    def matches(self, experiment: Experiment, kind: str = 'bbox') -> Matches | None:
        """Per-image matches, None where it was not run."""
        if self.result(experiment) is None:
            return None
        key = fingerprint(experiment, self.repository)
        if key not in self._matches:
            self._matches[key] = self.store.matches(key)
        return self._matches[key][kind]

    def pooled(self, experiments: Sequence[Experiment]) -> Matches | None:
        """Box matches of several experiments as of one on all their pictures, None unless all were run."""
        parts = [self.matches(experiment) for experiment in experiments]
        found = [matches for matches in parts if matches is not None]
        if len(found) < len(parts):
            return None
        keys = tuple(fingerprint(experiment, self.repository) for experiment in experiments)
        if keys not in self._pooled:
            self._pooled[keys] = pool(found)
        return self._pooled[keys]

    def starts_anew(self, experiment: Experiment) -> bool:
        """Whether it rests on a training whose checkpoint was gone and trained again: not the file that was evaluated.

        The same seed ends elsewhere on another processor. Trainings of before ``start_sha256`` was kept count as not.
        """
        start, own = experiment.starts_from, self.result(experiment)
        if own is None or not isinstance(start, Experiment):
            return False
        trained = self.result(start) or {}
        used = own.get('start_sha256') or (own.get('checkpoint_sha256') if experiment.kind == 'evaluate' else None)
        evaluated = trained.get('checkpoint_sha256')
        return (None not in (used, evaluated) and used != evaluated) or self.starts_anew(start)

    def claims(self) -> dict[str, Claim]:
        """The protocol's claims."""
        return read_claims(self.store.root / 'protocol.md')

    def judge_pairs(self, pairs: Mapping[str, tuple[Arm, Arm]]) -> list[dict[str, Any]]:
        """Claims about a paired difference in AP: (treatment, control), each one or a seed each, by the claim's id."""
        claims = self.claims()
        judged = []
        for name, pair in pairs.items():
            arms = [[arm] if isinstance(arm, Experiment) else arm for arm in pair]
            found = [[self.matches(experiment) for experiment in arm] for arm in arms]
            complete = all(matches is not None for arm in found for matches in arm)
            judged.append(claims[name].judge(difference(*found) if complete else None))
        return judged

    def row(self, experiment: Experiment) -> dict[str, Any]:
        """A model's line: its name; box AP with interval, mask AP and cost as 'result', None where it was not run."""
        result, matches = self.result(experiment), self.matches(experiment)
        if result is None or matches is None:
            return {'name': experiment.name, 'result': None}
        mask, cost = 100 * result['metrics']['coco/segm_mAP'], result['extras'].get('cost')
        return {'name': experiment.name, 'result': {'box': score(matches).as_dict(), 'mask': mask, 'cost': cost}}


@dataclass(frozen=True)
class Topic:
    """One page ``docs/results/<name>.{json,md,png}``.

    Args:
        name: file name without ending.
        summarise: reads results, returns the summary as plain JSON.
        markdown: turns the summary into the page's text.
        plot: draws the summary into an empty matplotlib figure; None: no picture.
        size: of the picture in inches.
        excerpt: turns the summary into what ``docs/results.md`` shows of it, between comments that name the topic.
    """

    name: str
    summarise: Callable[[Reader], dict[str, Any]]
    markdown: Callable[[dict[str, Any]], str]
    plot: Callable[[dict[str, Any], Any], None] | None = None
    size: tuple[float, float] = (9, 4)
    excerpt: Callable[[dict[str, Any]], str] | None = None


def render(topic: Topic, reader: Reader) -> dict[str, Any]:
    """Write the page; picture and text are made from the summary as it is written."""
    store = reader.store
    summary = json.loads(json.dumps(topic.summarise(reader), allow_nan=False))
    write_json(store.root / f'{topic.name}.json', summary)
    command = f'python benchmarks/experiments.py render {topic.name}'
    note = f'<!-- Made by `{command}` from the files in runs/; do not edit. -->\n'
    picture = f'\n![{topic.name}]({topic.name}.png)\n' if topic.plot else ''
    write_text(store.root / f'{topic.name}.md', f'{note}{topic.markdown(summary).strip()}\n{picture}')
    if topic.plot:
        _draw(topic, summary, store.root / f'{topic.name}.png')
    if topic.excerpt:
        _insert(topic.name, topic.excerpt(summary), store.root.with_suffix('.md'))
    return summary


def _insert(name: str, text: str, page: Path) -> None:
    """Put a topic's excerpt between its two comments in a page written by hand."""
    begin, end = f'<!-- {name}: made by `experiments.py render {name}` -->\n', f'<!-- end of {name} -->'
    written = page.read_text() if page.is_file() else f'{begin}{end}\n'
    if begin not in written or end not in written:
        raise ValueError(f'{page} has no place for {name}; add the lines {begin.strip()!r} and {end!r}')
    before, rest = written.split(begin, 1)
    write_text(page, f'{before}{begin}\n{text.strip()}\n\n{end}{rest.split(end, 1)[1]}')


def _draw(topic: Topic, summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    style = {
        'font.size': 10,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.prop_cycle': pyplot.cycler(color=COLOURS),
        'axes.grid': True,
        'grid.alpha': 0.3,
        'axes.axisbelow': True,
    }
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=topic.size, layout='constrained')
        topic.plot(summary, figure)
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
        figure.savefig(temporary, dpi=130, format='png', metadata={'Software': None})
        pyplot.close(figure)
    os.replace(temporary, path)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers right-aligned, None as a dash."""
    rows = [[_cell(value) for value in row] for row in rows]
    numeric = [all(_is_number(row[column]) for row in rows) and bool(rows) for column in range(len(header))]
    rule = ['---:' if right else '---' for right in numeric]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [list(header), rule, *rows])


def claims_table(judged: Sequence[Mapping[str, Any]]) -> str:
    """The outcome of claims as a table."""
    rows = []
    for entry in judged:
        found = entry['found']
        text = NOT_RUN if found is None else str(Interval.from_dict(found))
        rows.append([entry['id'], entry['claim'], entry['metric'], entry['margin'], text, f'**{entry["outcome"]}**'])
    return table(['id', 'claim', 'metric', 'margin', 'found [95 % interval]', 'outcome'], rows)


def interval_cells(found: Mapping[str, float] | None) -> list[Any]:
    """An interval's estimate and its ends."""
    return [None, None] if found is None else [found['estimate'], f'{found["low"]:.2f} .. {found["high"]:.2f}']


def _cell(value: Any) -> str:
    if value is None:
        return '-'
    return f'{value:.2f}' if isinstance(value, float) else str(value).replace('|', '\\|')


def _is_number(text: str) -> bool:
    return text in ('-', NOT_RUN) or text.lstrip('+-').replace('.', '', 1).isdigit()
