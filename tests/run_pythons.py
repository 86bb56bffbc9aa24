"""Set-up and suite on every supported Python: ``make test-pythons``, hours on two cores.

    python tests/run_pythons.py                        # all of them, from PATH and pyenv
    python tests/run_pythons.py --python 3.13 -- tests/models

Each interpreter gets an environment of its own below ``--folder``; what pytest printed last is shown for each, and the
exit status is 1 if one failed or was not found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ('3.10', '3.11', '3.12', '3.13')
SUITE = ('tests', '-n', '2', '--dist', 'loadfile', '--max-worker-restart', '0')  # as the Makefile's


def interpreter(version: str) -> Path | None:
    """An interpreter of ``version`` that runs: from PATH, else the newest that pyenv has."""
    pyenv = Path(os.environ.get('PYENV_ROOT') or Path.home() / '.pyenv') / 'versions'
    releases = sorted(
        pyenv.glob(f'{version}.*'), key=lambda folder: [int(n) for n in folder.name.split('.') if n.isdigit()]
    )
    on_path = shutil.which(f'python{version}')
    for found in (on_path, *(folder / 'bin' / 'python' for folder in reversed(releases))):
        if found and subprocess.run([found, '--version'], capture_output=True).returncode == 0:
            return Path(found)
    return None


def run(version: str, folder: Path, arguments: Sequence[str]) -> tuple[bool, str]:
    """(whether all passed, one line that says what ran) for one interpreter."""
    python = interpreter(version)
    if python is None:
        return False, 'not run: no such interpreter on PATH or in pyenv'
    place = folder / f'python{version}'
    setup = subprocess.run([python, ROOT / 'tools' / 'setup_env.py', '--folder', place])
    if setup.returncode:
        return False, f'set-up failed with exit status {setup.returncode}'
    log = folder / f'python{version}.log'
    with log.open('w') as stream:
        command = [place / 'bin' / 'python', '-m', 'pytest', *(arguments or SUITE)]
        suite = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
    lines = [line for line in log.read_text(errors='replace').splitlines() if ' passed' in line or ' failed' in line]
    return suite.returncode == 0, f'{lines[-1].strip("= ") if lines else "pytest ended early"} ({log})'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--python', nargs='+', choices=VERSIONS, default=VERSIONS, metavar='VERSION')
    parser.add_argument('--folder', type=Path, default=ROOT / 'work_dirs' / 'pythons', help='environments and logs')
    parser.add_argument('arguments', nargs='*', help='for pytest, behind --; the whole suite if there are none')
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {version: run(version, folder, given.arguments) for version in given.python}
    for version, (_, line) in outcomes.items():
        print(f'Python {version}: {line}')
    return int(not all(passed for passed, _ in outcomes.values()))


if __name__ == '__main__':
    sys.exit(main())
