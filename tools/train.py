#!/usr/bin/env python
"""Train a detector, or calibrate one when the config's train_cfg is a PTQLoop."""

from __future__ import annotations

import argparse

from mmengine.config import Config

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.calibration.run import kept_by_training
from mixaq_mmdet.engine.checkpoints.overwriting import ALLOWED, refuse_overwriting
from mixaq_mmdet.engine.damaged_files import check_work_dir, naming_annotations
from mixaq_mmdet.engine.tool_errors import one_line_errors


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
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace files of another run in the work folder, load_from included if it lies there',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = Config()
    with one_line_errors(args, kept=lambda: kept_by_training(cfg)):
        cfg = command_line.load_config(args)
        if args.amp:
            command_line.apply_amp(cfg)
        if args.auto_scale_lr:
            command_line.apply_auto_scale_lr(cfg)
        command_line.apply_resume(cfg, args.resume)
        if cfg.get('load_from'):
            command_line.check_checkpoint(cfg.load_from, 'load_from')
        check_work_dir(cfg.work_dir)
        if args.overwrite:
            cfg[ALLOWED] = True
        refuse_overwriting(cfg)
        with naming_annotations(cfg):
            command_line.build_runner(cfg).train()


if __name__ == '__main__':
    main()
