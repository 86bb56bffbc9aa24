"""Start of a distributed run, accelerators or not: every tool calls ``setup_distributed`` before it builds a Runner."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device

_DEFAULT_PORT = '29500'
# Where each launcher tells a process its place: (rank, number of ranks, rank on this machine).
_PLACE_VARIABLES = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def setup_distributed(cfg: Config, launcher: str) -> None:
    """Set ``cfg.launcher``; without an accelerator also open a gloo group and tell the wrapper about it.

    mmengine's launchers call ``torch.cuda.set_device`` and hand ``device_ids`` to DDP, both of which fail on CPU
    ranks. A group that is open already makes it skip the first, a wrapper config of ours overrides the second.

    Args:
        cfg: the config that the Runner will be built from; changed in place.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
    """
    cfg.launcher = launcher
    if launcher == 'none':
        return
    if launcher not in _PLACE_VARIABLES:
        raise ValueError(f'launcher={launcher!r} is unknown; use one of {["none", *_PLACE_VARIABLES]}')
    _check_place(launcher)
    if get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        _export_place(launcher)
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
        torch.distributed.init_process_group('gloo', timeout=None if timeout is None else timedelta(seconds=timeout))
        atexit.register(_close_group)
    wrapper = {
        'type': 'MMDistributedDataParallel',
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        'broadcast_buffers': False,
    }
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let this process know of no other ranks: for code that would average over ranks of which not all run it."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        yield
        return
    group = torch.distributed.GroupMember.WORLD
    torch.distributed.GroupMember.WORLD = None
    try:
        yield
    finally:
        torch.distributed.GroupMember.WORLD = group


def _check_place(launcher: str) -> None:
    missing = [name for name in _PLACE_VARIABLES[launcher] if name not in os.environ]
    # mmengine works without SLURM_LOCALID, and the tools set LOCAL_RANK themselves.
    if missing and not missing[0].startswith('SLURM_LOCALID'):
        start = 'tools/slurm_train.sh' if launcher == 'slurm' else 'tools/dist_train.sh CONFIG GPUS'
        raise ValueError(
            f'launcher={launcher!r} needs the environment variable {missing[0]}, which the launcher sets; '
            f'start through {start}, or use --launcher none for one process'
        )


def _export_place(launcher: str) -> None:
    """Give torch's env:// rendezvous the names it reads, as mmengine's own launchers do for accelerators."""
    if launcher != 'pytorch':
        for target, source in zip(_PLACE_VARIABLES['pytorch'], _PLACE_VARIABLES[launcher], strict=True):
            os.environ[target] = os.environ.get(source, '0')
    os.environ.setdefault('MASTER_PORT', _DEFAULT_PORT)
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_host() if launcher == 'slurm' else '127.0.0.1'


def _first_slurm_host() -> str:
    nodes = os.environ.get('SLURM_NODELIST', '')
    try:
        answer = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True)
        return answer.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ValueError(
            f'MASTER_ADDR is not set and `scontrol show hostnames {nodes}` does not give it ({error}); '
            'export MASTER_ADDR as the address of the first node'
        ) from error


def _close_group() -> None:
    """Leave together: a rank that exits while gloo's threads still release its last messages is aborted by them."""
    if torch.distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # ranks that failed do not come
            torch.distributed.monitored_barrier(timeout=timedelta(seconds=10))
        torch.distributed.destroy_process_group()
