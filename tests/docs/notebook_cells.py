"""Run the cells of a notebook in this process, and keep what they print and draw as its outputs.

    python tests/docs/notebook_cells.py docs/tutorial.ipynb      # runs it and writes the outputs into it

A notebook kernel is not needed: cells hold plain Python, and every matplotlib figure that a cell leaves open is shown
below it, as Jupyter does.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

WIDTH = 10  # inches of the widest figure
DPI = 90


def read(path: Path) -> dict[str, Any]:
    """A notebook as a dictionary."""
    return json.loads(path.read_text())


def run(notebook: dict[str, Any], folder: Path) -> None:
    """Execute the code cells with ``folder`` as working directory; replaces their outputs."""
    import matplotlib

    matplotlib.use('Agg')
    names: dict[str, Any] = {'__name__': '__main__'}
    before = Path.cwd()
    os.chdir(folder)
    try:
        code = [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']
        for number, cell in enumerate(code, start=1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(''.join(cell['source']), f'cell {number}', 'exec'), names)
            cell['execution_count'] = number
            cell['outputs'] = [*_texts(printed.getvalue()), *_figures()]
    finally:
        os.chdir(before)


def _texts(text: str) -> list[dict[str, Any]]:
    return [{'output_type': 'stream', 'name': 'stdout', 'text': text.splitlines(keepends=True)}] if text else []


def _figures() -> list[dict[str, Any]]:
    from matplotlib import pyplot
    from PIL import Image

    outputs = []
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        drawn, reduced = io.BytesIO(), io.BytesIO()
        dpi = DPI * min(1, WIDTH / figure.get_size_inches()[0])
        figure.savefig(drawn, dpi=dpi, metadata={'Software': None})
        Image.open(drawn).convert('RGB').quantize(96, dither=Image.Dither.NONE).save(reduced, 'PNG', optimize=True)
        data = {'image/png': base64.b64encode(reduced.getvalue()).decode(), 'text/plain': ['a figure']}
        outputs.append({'output_type': 'display_data', 'data': data, 'metadata': {}})
    pyplot.close('all')
    return outputs


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    notebook = read(path)
    run(notebook, path.parent.parent)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
    main()
