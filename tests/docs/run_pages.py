"""Run the command blocks of the documentation: ``make docs-test``, or ``python tests/docs/run_pages.py [PAGE ...]``.

Each page runs in a folder of its own that looks like the repository root: tools, configs, benchmarks and checkpoints
are linked into it, ``data/minicoco`` is a set of a few pictures (made if missing), and whatever a page writes is thrown
away. Commands of this repository run in forks of one process that has loaded the stack already; others are given to
bash. What is marked ``<!-- not run: reason -->`` is listed with its reason. See ``page_blocks.py`` for what a page may
say.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from page_blocks import SHOWN, Block, blocks, hides_commands  # noqa: E402
from tool_process import REPOSITORY  # noqa: E402

LINKED = ('tools', 'configs', 'checkpoints', 'benchmarks', 'tests', 'mixaq_mmdet', 'Makefile')
DATA = REPOSITORY / 'data' / 'minicoco-docs'
SIZES = '--train 8 --calib 4 --search 4 --val 4 --test 4 --severities 3'
OURS = re.compile(r'python (tools|benchmarks)/\w+\.py ')
ASSIGNMENT = re.compile(r'(?:export )?([A-Z_]+)=(\S*)$')


def all_pages() -> list[str]:
    """Every page that tells a reader what to type."""
    found = ['README.md', 'CONTRIBUTING.md', 'configs/mixaq/README.md']
    return [*found, *(f'docs/{path.name}' for path in sorted((REPOSITORY / 'docs').glob('*.md')))]


class Failed(Exception):
    """A command of a page ended otherwise than a reader would expect."""


class PageRun:
    """One page in one folder; variables that its commands set last until its end."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self.variables: dict[str, str] = {}
        for name in LINKED:
            (folder / name).symlink_to(REPOSITORY / name)
        (folder / 'docs' / 'results').mkdir(parents=True)
        (folder / 'data').mkdir()
        (folder / 'data' / 'minicoco').symlink_to(DATA)

    def block(self, block: Block) -> None:
        """Run one block."""
        if block.file_name:
            (self.folder / block.file_name).write_text(block.text)
        elif block.language == 'python':
            self.fork(lambda: exec(compile(block.text, block.place, 'exec'), {'__name__': '__main__'}))
        else:
            for command in block.commands():
                self.command(command)

    def command(self, command: str) -> None:
        """Run one command, or remember the variable that it sets."""
        if assigned := ASSIGNMENT.match(command):
            self.variables[assigned[1]] = assigned[2]
        elif OURS.match(f'{command} ') and not re.search(r'[|>;&]|\$\(', command):
            for name, value in self.variables.items():
                command = command.replace(f'${name}', value)
            self.fork(lambda: _run_script(shlex.split(command)[1:]))
        else:
            with self.log.open('a') as log:
                shell = ['bash', '-euo', 'pipefail', '-c', command]
                path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
                environment = {**os.environ, **self.variables, 'PATH': path, 'PYTHON': sys.executable}
                if subprocess.run(shell, cwd=self.folder, env=environment, stdout=log, stderr=log).returncode:
                    raise Failed(command)

    def fork(self, work: Callable[[], object]) -> None:
        """Do ``work`` in a child in the page's folder, with the page's variables; its output goes to the log."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.chdir(self.folder)
                os.environ.update(self.variables)
                work()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
                if isinstance(stop.code, str):
                    print(stop.code)
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            raise Failed('see the output')


def _run_script(words: list[str]) -> None:
    """``words`` without the interpreter, as ``__main__``; patterns are spelled out as a shell would."""
    sys.argv = [word for pattern in words for word in (sorted(glob.glob(pattern)) or [pattern])]
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name='__main__')


def make_data() -> None:
    """A set of a few pictures in every split."""
    if not (DATA / 'MANIFEST.sha256').exists():
        command = f'{sys.executable} tools/make_minicoco.py --out {DATA} --overwrite {SIZES}'
        subprocess.run(command.split(), cwd=REPOSITORY, check=True)


def run(page: str) -> tuple[int, int]:
    """Run a page; returns how many of its blocks ran and how many were not meant to."""
    ran = left = 0
    with tempfile.TemporaryDirectory() as folder:
        page_run = PageRun(Path(folder), Path(folder) / 'output.log')
        for block in blocks(page):
            if hides_commands(block):
                raise Failed(f'{block.place}: a command in a text block; fence it as shell')
            if block.language in SHOWN:
                continue
            if block.not_run:
                print(f'not run  {block.place}: {block.not_run}')
                left += 1
                continue
            started = time.perf_counter()
            try:
                page_run.block(block)
            except Failed as failure:
                output = page_run.log.read_text().splitlines()[-40:] if page_run.log.exists() else []
                raise Failed('\n'.join([f'{block.place}: {failure}', *output])) from None
            print(f'ran      {block.place} ({time.perf_counter() - started:.1f} s)', flush=True)
            ran += 1
    return ran, left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pages', nargs='*', help='paths from the repository root; all of them by default')
    pages = parser.parse_args().pages or all_pages()
    make_data()
    import mixaq_mmdet  # noqa: F401  loaded once, before the forks

    counts, failures = [], []
    for page in pages:
        try:
            counts.append(run(page))
        except Failed as failure:
            print(f'FAILED   {failure}', flush=True)
            failures.append(page)
    ran, left = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    print(f'{ran} blocks ran, {left} are marked as not run, {len(failures)} pages failed: {", ".join(failures) or "-"}')
    return int(bool(failures))


if __name__ == '__main__':
    sys.exit(main())
