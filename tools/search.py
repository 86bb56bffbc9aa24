#!/usr/bin/env python
"""Search low (and prune) ratios for a budget, on images that no result is reported on; ends with a ready config.

With the defaults 240 candidates are evaluated on 100 images each. Interrupt it as you like: the same command with
--resume goes on where it was, and ends on the same front. Start through torchrun with --launcher pytorch to share the
images among ranks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.damaged_files import check_work_dir, naming_annotations
from mixaq_mmdet.engine.tool_errors import one_line_errors
from mixaq_mmdet.search import layer_run

SEARCH_IS_KEPT = 'give the same command with --resume: every finished candidate is kept'
RATIO_FLAGS = (
    'target_latency', 'objectives', 'population', 'generations', 'prune', 'surrogate', 'detector', 'resume', 'force',
    'ann_file', 'image_prefix',
)  # fmt: skip
SETTINGS = ('images', 'seed', *(name for name in RATIO_FLAGS if name != 'target_latency'))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file with a quantized TwoBranchSwin')
    parser.add_argument('checkpoint', help='its calibrated or trained checkpoint')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        '--budget', type=float, help='largest relative bit operations (default: 0.75, with --allocate 1.0)'
    )
    budget.add_argument('--target-latency', type=float, metavar='MS', help='largest predicted latency instead')
    parser.add_argument(
        '--objectives',
        default='map,bops',
        help='map,bops | map,latency | proxy,bops | proxy,latency; proxy is the feature error against the float '
        'backbone, cheaper than AP (default: map,bops)',
    )
    parser.add_argument('--population', type=int, default=24, help='candidates of a generation (default: 24)')
    parser.add_argument('--generations', type=int, default=10, help='generations, the first included (default: 10)')
    parser.add_argument('--images', type=int, default=100, help='images each candidate is evaluated on (default: 100)')
    parser.add_argument('--seed', type=int, default=0, help='of the images and of the search')
    parser.add_argument('--prune', action='store_true', help='search prune ratios too')
    parser.add_argument('--surrogate', action='store_true', help='let a surrogate propose; a third of the evaluations')
    parser.add_argument(
        '--detector', action='store_true', help='predicted latency is that of the whole detector, not of its backbone'
    )
    parser.add_argument('--ann-file', help="annotation file to search on, below the test set's data_root")
    parser.add_argument('--image-prefix', help='folder of its images, below data_root')
    parser.add_argument('--resume', action='store_true', help='go on from history.jsonl in the work folder')
    parser.add_argument('--force', action='store_true', help='allow to search on a val or test split')
    command_line.add_config_arguments(parser)
    layer_run.add_arguments(parser.add_argument_group('bits per layer'))
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    return build_parser().parse_args(argv)


def refuse_unused(args: argparse.Namespace) -> None:
    """A ValueError that names the flags which the asked kind of search would ignore."""
    parser = build_parser()
    names, reason = (RATIO_FLAGS, '--allocate ignores') if args.allocate else (layer_run.FLAGS, 'only --allocate reads')
    given = [f'--{name.replace("_", "-")}' for name in names if getattr(args, name) != parser.get_default(name)]
    if given:
        raise ValueError(
            f'{", ".join(given)}: {reason} this; drop it, or {"drop" if args.allocate else "add"} --allocate'
        )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors(args, kept=lambda: SEARCH_IS_KEPT):
        refuse_unused(args)
        cfg = command_line.load_config(args)
        command_line.check_checkpoint(args.checkpoint, 'checkpoint')
        if args.allocate:
            check_work_dir(cfg.work_dir)
            with naming_annotations(cfg):
                layer_run.run(cfg, args)
            return
        from mixaq_mmdet.search.run import Settings, run_search

        settings = Settings(
            config=Path(args.config),
            checkpoint=Path(args.checkpoint),
            work_dir=Path(args.work_dir or Path('work_dirs') / f'search_{Path(args.config).stem}'),
            budget=None if args.target_latency is not None else 0.75 if args.budget is None else args.budget,
            target_latency=args.target_latency,
            edited=bool(args.cfg_options),
            **{name: getattr(args, name) for name in SETTINGS},
        )
        check_work_dir(settings.work_dir)
        with naming_annotations(cfg):
            run_search(cfg, settings)


if __name__ == '__main__':
    main()
