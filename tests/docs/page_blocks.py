"""Run the fenced blocks of a documentation page in order, as a reader would from the repository root.

- ```` ```python ```` whose first line is ``# name.py``: written to that file.
- any other ```` ```python ````: executed.
- ```` ```shell ````: each ``python tools/<name>.py ...`` is called, in this process, which spares an import of the
  stack per line; any other command is an error, so that nothing on a page goes unchecked.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tool_process import REPOSITORY, load_tool


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, text) of every fenced block of ``docs/<page>``."""
    text = (REPOSITORY / 'docs' / page).read_text()
    yield from re.findall(r'^```(\w+)\n(.*?)^```', text, re.M | re.S)


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every block with ``folder`` standing in for the repository root."""
    for name in ('tools', 'configs', 'checkpoints'):
        (folder / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(folder)
    for language, text in blocks(page):
        file_name = re.match(r'# (\w+\.py)\n', text)
        if language == 'python' and file_name:
            Path(file_name[1]).write_text(text)
        elif language == 'python':
            exec(compile(text, page, 'exec'), {})
        elif language == 'shell':
            for command in text.replace('\\\n', ' ').splitlines():
                _call_tool(shlex.split(command, comments=True), monkeypatch)
        else:
            raise ValueError(f'{page}: a block in {language!r} is not run; write python or shell, or indent it')


def _call_tool(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if not words:
        return
    if len(words) < 2 or words[0] != 'python' or not words[1].startswith('tools/'):
        raise ValueError(f'cannot check {shlex.join(words)!r}: only `python tools/<name>.py` is run')
    monkeypatch.setattr(sys, 'argv', words[1:])
    load_tool(words[1].removeprefix('tools/')).main()
