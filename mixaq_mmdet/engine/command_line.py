"""What the tools share between their arguments and a Runner: OpenMMLab's flags, and errors that say what to do."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from .argument_checks import type_name
from .damaged_files import check_readable, read_config
from .distributed import setup_distributed
from .tool_errors import add_traceback_flag

TOOL_HOOKS = {'cost': 'CostHook', 'distillation': 'DistillationHook'}
"""What a test cost is told, and ``model.backbone.distill`` is heeded, without an edit to a config."""


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every OpenMMLab tool has beside its config."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='edits to the config, e.g. model.backbone.low_ratios=0.5 "train_dataloader.dataset.pipeline=[...]"; '
        'lists are written key="[a,b]" or key=a,b without blanks',
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none', help='who started the processes'
    )
    add_traceback_flag(parser)
    # torch.distributed.launch passes one spelling or the other, depending on its version.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """The config that ``args`` (of a parser with ``add_config_arguments`` and ``config``) describe, ready for a Runner.

    Raises:
        ValueError: for a missing or broken config, and for a launcher that did not start this process.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config, edits=args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    setup_distributed(cfg, args.launcher)
    return cfg


def check_checkpoint(path: str, field: str) -> str:
    """``path`` itself; a ValueError if it is a local path where no readable checkpoint lies."""
    if '://' not in path:
        if not Path(path).expanduser().is_file():
            raise ValueError(f'{field} {path!r} is not a file; relative paths start at {Path.cwd()}')
        check_readable(path, field)
    return path


def apply_resume(cfg: Config, resume: str | None) -> None:
    """``--resume PATH``, or ``--resume`` alone ('auto'): the newest checkpoint of the work folder.

    Where there is none yet, 'auto' starts the run as the config says, with its ``load_from``: the same command can
    then start a run and continue it.
    """
    if resume is None:
        return
    if resume != 'auto':
        cfg.resume, cfg.load_from = True, check_checkpoint(resume, '--resume')
        return
    newest = find_latest_checkpoint(cfg.work_dir)
    if newest == '':  # a kill while mmengine wrote the name
        files = sorted(Path(cfg.work_dir).glob('*.pth'), key=lambda path: path.stat().st_mtime)
        newest = str(files[-1]) if files else None
    if newest is None:
        print(f'--resume: no checkpoint in {cfg.work_dir} yet, the run starts from the beginning')
        cfg.resume = False
        return
    if not Path(newest).is_file():  # last_checkpoint holds the path of the time; the folder may have moved since
        newest = str(Path(cfg.work_dir) / Path(newest).name)
    cfg.resume, cfg.load_from = True, check_checkpoint(newest, f'{cfg.work_dir}/last_checkpoint names')


def apply_amp(cfg: Config) -> None:
    """``--amp``: mixed precision; a constructor in ``optim_wrapper`` survives and may choose its own wrapper."""
    if get_device() == 'cpu':
        raise ValueError('--amp needs an accelerator, and none is visible here; drop the flag')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def apply_auto_scale_lr(cfg: Config) -> None:
    """``--auto-scale-lr``: learning rate in proportion to the real batch size."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ValueError(
            '--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, the batch size that optim_wrapper.'
            'optimizer.lr was chosen for; add auto_scale_lr=dict(enable=False, base_batch_size=16)'
        )
    cfg.auto_scale_lr.enable = True


def add_hooks(cfg: Config) -> None:
    """Add the hooks that the tools bring to ``default_hooks``; None under a hook's name there keeps it out."""
    if cfg.get('default_hooks') is None:
        cfg.default_hooks = {}
    hooks = cfg.default_hooks
    named = [hook for hook in [*hooks.values(), *(cfg.get('custom_hooks') or [])] if isinstance(hook, Mapping)]
    present = {type_name(hook.get('type')) for hook in named}
    for name, kind in TOOL_HOOKS.items():
        if kind not in present and hooks.setdefault(name, {'type': kind}) is None:
            del hooks[name]  # mmengine knows None for its own hooks only


def build_runner(cfg: Config) -> Runner:
    """The Runner of ``cfg``, of the class ``runner_type`` names if it does."""
    add_hooks(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
