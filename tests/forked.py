"""Processes of their own for tests, forked from a server that has imported the stack: each starts in an instant.

A fresh interpreter spends seconds on the imports of torch and mmdet, more than most of what tests do in one. The server
has run no code but imports, so a process forked from it is as good as new.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

STACK = [
    'mixaq_mmdet', 'mixaq_mmdet.engine.evaluate', 'mmdet.apis', 'mmengine.runner', 'pycocotools.coco',
    'matplotlib.figure', 'pymoo.algorithms.moo.nsga2',
]  # fmt: skip
# a CUDA context does not survive a fork
_context = multiprocessing.get_context('spawn' if torch.cuda.is_available() else 'forkserver')
if not torch.cuda.is_available():
    _context.set_forkserver_preload(STACK)


def run_script(
    script: str | Path,
    arguments: Sequence[object],
    cwd: str | Path,
    environment: Mapping[str, str],
    output: Path,
    timeout: float = 900,
) -> SimpleNamespace:
    """Run a python file as ``python script arguments`` would; the finished process as ``subprocess.run`` gives it."""
    process = start_script(script, arguments, cwd, environment, output)
    finish([process], timeout)
    return SimpleNamespace(returncode=process.exitcode, stdout=output.read_text(errors='replace'))


def start_script(
    script: str | Path, arguments: Sequence[object], cwd: str | Path, environment: Mapping[str, str], output: Path
) -> Any:
    """As :func:`run_script`, without waiting for its end."""
    words = [str(script), *(str(argument) for argument in arguments)]
    # the server has the environment of the moment it started
    variables = {**os.environ, **environment}
    process = _context.Process(target=_script, args=(words, str(cwd), variables, str(output)))
    process.start()
    return process


def run_ranks(
    script: str | Path,
    arguments: Sequence[object],
    cwd: str | Path,
    environment: Mapping[str, str],
    folder: Path,
    timeout: float = 900,
) -> SimpleNamespace:
    """As :func:`run_script`, on two ranks that find what torchrun would tell them in their environment."""
    place = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port(), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2'}
    outputs = [folder / f'rank{rank}.txt' for rank in (0, 1)]
    processes = [
        start_script(script, arguments, cwd, {**environment, **place, 'RANK': str(rank), 'LOCAL_RANK': str(rank)}, out)
        for rank, out in enumerate(outputs)
    ]
    finish(processes, timeout)
    text = ''.join(output.read_text(errors='replace') for output in outputs)
    return SimpleNamespace(returncode=max(abs(process.exitcode) for process in processes), stdout=text)


def free_port() -> str:
    """A port that nothing listened at a moment ago."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def on_two_ranks(function: Callable[..., Any], folder: Path, *arguments: Any, timeout: float = 900) -> list[Any]:
    """What ``function(rank, *arguments)``, of a module's top level, returns on each of two gloo ranks."""
    meeting = folder / 'rendezvous'
    answers = [folder / f'rank{rank}.pt' for rank in (0, 1)]
    processes = [
        _context.Process(target=_rank, args=(rank, str(meeting), str(answer), function, arguments))
        for rank, answer in enumerate(answers)
    ]
    for process in processes:
        process.start()
    finish(processes, timeout)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(answer, weights_only=False) for answer in answers]


def finish(processes: Sequence[Any], timeout: float) -> None:
    """Wait for processes; those that do not end are killed, also where a test's time limit ends the wait."""
    end = time.monotonic() + timeout
    try:
        for process in processes:
            process.join(max(end - time.monotonic(), 0))
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def _script(words: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    with open(output, 'wb') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    added = [path for path in environment.get('PYTHONPATH', '').split(os.pathsep) if path]
    sys.path[:0] = [str(Path(words[0]).parent), *added]
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name='__main__')
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips them


def _rank(rank: int, meeting: str, answer: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{meeting}', rank=rank, world_size=2)
    torch.save(function(rank, *arguments), answer)
    dist.barrier()
    dist.destroy_process_group()
