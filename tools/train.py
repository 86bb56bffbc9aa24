#!/usr/bin/env python
"""Train a detector, or calibrate one when the config's train_cfg is a PTQLoop."""

from __future__ import annotations

import argparse
import sys

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.damaged_files import check_work_dir, naming_annotations
from mixaq_mmdet.quantization import NotCalibratedError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='train config file')
    command_line.add_config_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT; without one, from the newest in the work folder, if there is any',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        cfg = command_line.load_config(args)
        if args.amp:
            command_line.apply_amp(cfg)
        if args.auto_scale_lr:
            command_line.apply_auto_scale_lr(cfg)
        command_line.apply_resume(cfg, args.resume)
        if cfg.get('load_from'):
            command_line.check_checkpoint(cfg.load_from, 'load_from')
        check_work_dir(cfg.work_dir)
    except ValueError as error:
        sys.exit(f'error: {error}')
    try:
        with naming_annotations(cfg):
            command_line.build_runner(cfg).train()
    except NotCalibratedError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
