"""Run the command-line tools in processes of their own, and read the losses they logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from forked import run_ranks, run_script

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / 'tools'


def run_process(*command: str | Path, cwd: str | Path, timeout: float = 900, **environment: str):
    """The finished process, stdout and stderr as one text in ``.stdout``; ``environment`` adds variables."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, 'PYTHON': sys.executable, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors='replace',
        timeout=timeout,
    )


def run_tool(name: str, *arguments: str | Path, cwd: str | Path, **environment: str):
    """Run ``tools/<name>`` from ``cwd``, or a python file elsewhere: shell scripts by bash, python files forked."""
    if name.endswith('.sh'):
        return run_process('bash', TOOLS / name, *arguments, cwd=cwd, **environment)
    with tempfile.TemporaryDirectory() as folder:
        return run_script(TOOLS / name, arguments, cwd, environment, Path(folder) / 'output')


def run_on_two_ranks(name: str, *arguments: str | Path, cwd: str | Path, **environment: str):
    """As :func:`run_tool` for a python tool, on two ranks; tools/dist_train.sh starts such through torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*arguments, '--launcher', 'pytorch']
        return run_ranks(TOOLS / name, words, cwd, environment, Path(folder))


def load_tool(name: str) -> ModuleType:
    """``tools/<name>`` as a module, for what needs no process of its own: arguments that end in an error."""
    spec = spec_from_file_location(f'mixaq_tools_{Path(name).stem}', TOOLS / name)
    module = module_from_spec(spec)
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))  # as a script's own folder is when it runs
    spec.loader.exec_module(module)
    return module


def logged_losses(work_dir: str | Path) -> dict[int, float]:
    """Loss per iteration (1-based) from all runs in ``work_dir``, the latest run's value where several logged one."""
    losses = {}
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            record = json.loads(line)
            if 'loss' in record:
                losses[record['step']] = record['loss']
    return losses
