"""Pages: a summary in JSON, its table in Markdown, its picture, all from result files and nothing else."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from mixaq_mmdet.reporting.figures import COLOURS, save_figure

from .page import Page
from .reader import Reader
from .store import write_json, write_text


def render(page: Page, reader: Reader) -> dict[str, Any]:
    """Write the page; picture and text are made from the summary as it is written."""
    store = reader.store
    summary = json.loads(json.dumps(page.summarise(reader), allow_nan=False))
    write_json(store.root / f'{page.name}.json', summary)
    command = f'python benchmarks/experiments.py render {page.name}'
    note = f'<!-- Made by `{command}` from the files in runs/; do not edit. -->\n'
    picture = f'\n![{page.name}]({page.name}.png)\n' if page.plot else ''
    write_text(store.root / f'{page.name}.md', f'{note}{page.markdown(summary).strip()}\n{picture}')
    if page.plot:
        _draw(page, summary, store.root / f'{page.name}.png')
    if page.excerpt:
        _insert(page.name, page.excerpt(summary), store.root.with_suffix('.md'))
    return summary


def _insert(name: str, text: str, path: Path) -> None:
    """Put a page's excerpt between its two comments in a page written by hand."""
    begin, end = f'<!-- {name}: made by `experiments.py render {name}` -->\n', f'<!-- end of {name} -->'
    written = path.read_text() if path.is_file() else f'{begin}{end}\n'
    if begin not in written or end not in written:
        raise ValueError(f'{path} has no place for {name}; add the lines {begin.strip()!r} and {end!r}')
    before, rest = written.split(begin, 1)
    write_text(path, f'{before}{begin}\n{text.strip()}\n\n{end}{rest.split(end, 1)[1]}')


def _draw(page: Page, summary: dict[str, Any], path: Path) -> None:
    import matplotlib

    style = {
        'font.size': 10,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.prop_cycle': matplotlib.cycler(color=COLOURS),
        'axes.grid': True,
        'grid.alpha': 0.3,
        'axes.axisbelow': True,
    }
    with matplotlib.rc_context(style):
        save_figure(path, partial(page.plot, summary), dpi=130, figsize=page.size, layout='constrained')
