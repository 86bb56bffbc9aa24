"""The site of these pages: ``make docs`` builds it with Sphinx, from the same Markdown that forges show."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from mixaq_mmdet.version import __version__

project = 'mixaq_mmdet'
author = copyright = 'The mixaq_mmdet contributors'
version = release = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['results/runs', '_build']
myst_heading_anchors = 4
suppress_warnings = ['myst.header', 'misc.highlighting_failure']

autodoc_typehints = 'description'
autodoc_member_order = 'bysource'
napoleon_google_docstring = True

html_theme = 'furo'
html_title = 'mixaq_mmdet'
html_static_path = ['images']

ROOT = Path(__file__).resolve().parent.parent
# pages of the site whose text lies elsewhere in the repository; here they only point there, for readers on a forge
ELSEWHERE = {
    'recipes': 'configs/mixaq/README.md',
    'changelog': 'CHANGELOG.md',
    'contributing': 'CONTRIBUTING.md',
}


def _repaired(text: str, folder: str) -> str:
    """Links of a text that lies in ``folder`` of the repository, as they have to be in a page of docs/."""

    def repair(found: re.Match[str]) -> str:
        shown, target, anchor = found.groups(default='')
        path = os.path.normpath(os.path.join(folder, target))
        for page, source in ELSEWHERE.items():
            if path == source:
                return f'[{shown}]({page}.md{anchor})'
        if path.startswith('docs' + os.sep):
            return f'[{shown}]({os.path.relpath(path, "docs")}{anchor})'
        return f'`{path}`' if (ROOT / path).exists() else found.group()

    return re.sub(r'\[([^\]]+)\]\((?!\w+://)([^)#\s]+)(#[^)]*)?\)', repair, text)


def _notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and what the code printed and drew when it was last run."""
    parts = []
    for cell in json.loads(path.read_text())['cells']:
        text = ''.join(cell['source'])
        parts.append(text if cell['cell_type'] == 'markdown' else f'```python\n{text}\n```')
        for output in cell.get('outputs', []):
            if output['output_type'] == 'stream':
                parts.append('```text\n' + ''.join(output['text']) + '```')
            else:
                image = output['data']['image/png']
                parts.append(f'![Figure that the code above draws](data:image/png;base64,{image})')
    return '\n\n'.join(parts) + '\n\nThis page is a notebook: {download}`tutorial.ipynb`.\n'


def setup(app) -> None:  # the name and the argument are Sphinx's
    def read(_app, name, source) -> None:
        if name in ELSEWHERE:
            path = ELSEWHERE[name]
            source[0] = _repaired((ROOT / path).read_text(), os.path.dirname(path))
        elif name == 'tutorial':
            source[0] = _notebook_page(Path(_app.srcdir, 'tutorial.ipynb'))
        elif not name.startswith('results/') and '](../' in source[0]:
            source[0] = _repaired(source[0], 'docs')

    app.connect('source-read', read)
