"""The fenced blocks of a documentation page, and how tests run them, as a reader would from the repository root.

- ```` ```python ```` whose first line is ``# name.py``: written to that file.
- any other ```` ```python ````: executed.
- ```` ```shell ````: commands. ``run_page`` calls each ``python tools/<name>.py ...`` in this process, which spares an
  import of the stack per line; ``run_pages.py`` (``make docs-test``) runs any command.
- ```` ```text ```` and ```` ```mermaid ````: shown, not run, so they may hold no command.

HTML comments on the lines right before a block, which readers do not see, say what the run of it needs::

    <!-- not run: needs COCO -->
    <!-- docs-test before: python tools/train.py configs/mini/some.py -->      run first
    <!-- docs-test names: CONFIG=configs/mini/some.py -->                      words that stand for others
    <!-- docs-test adds search.py: --population 2 -->                          arguments for that script's commands
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tool_process import REPOSITORY, load_tool

SHOWN = ('text', 'mermaid')
LANGUAGES = ('python', 'shell', *SHOWN)
_COMMENT = re.compile(r'<!-- (?P<key>not run|docs-test \w+)(?: (?P<script>[\w.]+))?: (?P<value>.+?) -->$')
_COMMAND = re.compile(r'\s*(?:[A-Z_]+=\S+ )*(?:python|pip|make|bash|torchrun|git|sha256sum|source)\s')


@dataclass
class Block:
    """One fenced block: where it stands, what is in it, and what its comments say."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    before: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    adds: dict[str, list[str]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """``page:line``."""
        return f'{self.page}:{self.line}'

    @property
    def file_name(self) -> str | None:
        """The file that a python block is to be written to."""
        found = re.match(r'# (\w+\.py)\n', self.text) if self.language == 'python' else None
        return found[1] if found else None

    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, comments and blank lines dropped."""
        lines = self.text.replace('\\\n', ' ').splitlines()
        return [*self.before, *(self._completed(line) for line in lines if shlex.split(line, comments=True))]

    def _completed(self, command: str) -> str:
        command = re.sub(r'\s+# .*', '', command)
        for name, value in self.names.items():
            command = re.sub(rf'(?<![\w/.-]){re.escape(name)}(?![\w/.-])', value, command)
        added = [word for script, words in self.adds.items() if f'/{script}' in command for word in words]
        return ' '.join([command, *added])


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of a page: ``qat.md`` of docs/, or a path from the repository root."""
    path = REPOSITORY / page if (REPOSITORY / page).is_file() else REPOSITORY / 'docs' / page
    comments: list[re.Match[str]] = []
    block: Block | None = None
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if block is not None and line.strip() == '```':
            yield block
            block, comments = None, []
        elif block is not None:
            block.text += line + '\n'
        elif line.startswith('```'):
            block = _opened(page, number, line.removeprefix('```'), comments)
        elif found := _COMMENT.match(line):
            comments.append(found)
        elif line.startswith(('<!-- not run', '<!-- docs-test')):
            raise ValueError(f'{page}:{number}: {line!r} is not understood; see the top of {Path(__file__).name}')
        else:
            comments = []
            if re.match(r' {4,}', line) and _COMMAND.match(line):
                raise ValueError(f'{page}:{number}: an indented command is not run; fence it as shell')
    if block is not None:
        raise ValueError(f'{block.place}: the block is never closed')


def _opened(page: str, number: int, language: str, comments: list[re.Match[str]]) -> Block:
    block = Block(page, number, language, '')
    if language not in LANGUAGES:
        raise ValueError(f'{block.place}: a block in {language!r}; use one of {list(LANGUAGES)}')
    for comment in comments:
        key, value = comment['key'].removeprefix('docs-test '), comment['value']
        if key == 'not run':
            block.not_run = value
        elif key == 'before':
            block.before.append(value)
        elif key == 'names':
            block.names.update(pair.split('=', 1) for pair in value.split())
        elif key == 'adds' and comment['script']:
            block.adds[comment['script']] = value.split()
        else:
            raise ValueError(f'{block.place}: {comment[0]!r} is not understood; see the top of {Path(__file__).name}')
    return block


def hides_commands(block: Block) -> bool:
    """Whether a block that is never run holds what a reader would type."""
    return block.language in SHOWN and not block.not_run and any(map(_COMMAND.match, block.text.splitlines()))


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every block with ``folder`` standing in for the repository root."""
    for name in ('tools', 'configs', 'checkpoints'):
        (folder / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(folder)
    # mmengine lays out a run's config five times, for its logs: a quarter of the time of runs this small
    for module in ('mmengine.config.config', 'yapf.yapflib.yapf_api'):  # OpenMMLab's mmengine imports it at the top
        monkeypatch.setattr(f'{module}.FormatCode', lambda text, **_: (text, True), raising=False)
    for block in blocks(page):
        if block.not_run or block.language in SHOWN:
            continue
        if block.file_name:
            Path(block.file_name).write_text(block.text)
        elif block.language == 'python':
            exec(compile(block.text, block.place, 'exec'), {})
        else:
            for command in block.commands():
                _call_tool(shlex.split(command), monkeypatch)


def _call_tool(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if len(words) < 2 or words[0] != 'python' or not words[1].startswith('tools/'):
        raise ValueError(f'cannot check {shlex.join(words)!r}: only `python tools/<name>.py` is run')
    monkeypatch.setattr(sys, 'argv', words[1:])
    load_tool(words[1].removeprefix('tools/')).main()
