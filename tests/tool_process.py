"""Run the command-line tools in processes of their own, and read the losses they logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = REPOSITORY / 'tools'


def run_process(*command: str | Path, cwd: str | Path, timeout: float = 300, **environment: str):
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
    """Run ``tools/<name>`` from ``cwd``: python files by this interpreter, shell scripts by bash."""
    interpreter = 'bash' if name.endswith('.sh') else sys.executable
    return run_process(interpreter, TOOLS / name, *arguments, cwd=cwd, **environment)


def logged_losses(work_dir: str | Path) -> dict[int, float]:
    """Loss per iteration (1-based) from all runs in ``work_dir``, the latest run's value where several logged one."""
    losses = {}
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            record = json.loads(line)
            if 'loss' in record:
                losses[record['step']] = record['loss']
    return losses
