#!/usr/bin/env python
"""Test a detector: metrics of the config's test_evaluator, pictures and raw predictions on demand."""

from __future__ import annotations

import argparse
import copy

from mmengine.config import Config, ConfigDict

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.deploy.files import check_integer_checkpoint
from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.damaged_files import check_work_dir, naming_annotations
from mixaq_mmdet.engine.tool_errors import one_line_errors

FLIP_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
FLIP_TTA = dict(
    type='TestTimeAug',
    transforms=[
        [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
        [dict(type='PackDetInputs', meta_keys=FLIP_META)],
    ],
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='test config file')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    command_line.add_config_arguments(parser)
    parser.add_argument('--out', metavar='FILE.pkl', help='write the raw predictions here')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='write pictures of the predictions to <work dir>/<time>/SHOW_DIR')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that --show leaves a picture on screen')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation (tta_model and tta_pipeline)')
    return parser.parse_args(argv)


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on the visualization hook for ``--show`` and ``--show-dir``."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need default_hooks.visualization in the config; '
            "add visualization=dict(type='DetVisualizationHook') to default_hooks"
        )
    hook.draw = True
    if args.show:
        hook.show, hook.wait_time = True, args.wait_time
    if args.show_dir:
        hook.test_out_dir = args.show_dir


def augment_test(cfg: Config) -> None:
    """Wrap the model and replace the pipeline for ``--tta``; a config without either gets a horizontal flip."""
    if 'tta_model' not in cfg:
        print('--tta: the config has no tta_model, DetTTAModel with NMS at 0.5 is used')
        tta_cfg = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=tta_cfg)
    has_masks = 'mask_head' in cfg.model or cfg.model.get('roi_head', {}).get('mask_head') is not None
    if cfg.tta_model.type == 'DetTTAModel' and has_masks:
        raise ValueError(
            '--tta: DetTTAModel merges boxes only, and this model predicts masks; test without --tta, or without its '
            'masks: --cfg-options model.roi_head.mask_head=None test_evaluator.metric=bbox'
        )
    dataset = cfg.test_dataloader.dataset
    if 'tta_pipeline' not in cfg:
        print('--tta: the config has no tta_pipeline, the test pipeline and its horizontal flip are used')
        innermost = dataset
        while 'dataset' in innermost:
            innermost = innermost.dataset
        cfg.tta_pipeline = [*copy.deepcopy(innermost.pipeline[:-1]), FLIP_TTA]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors(args):
        if args.out and not args.out.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--out {args.out!r} must end in .pkl or .pickle')
        cfg = command_line.load_config(args)
        cfg.load_from = command_line.check_checkpoint(args.checkpoint, 'checkpoint')
        check_integer_checkpoint(cfg, args.checkpoint)
        check_work_dir(cfg.work_dir)
        if args.show or args.show_dir:
            draw_predictions(cfg, args)
        if args.tta:
            augment_test(cfg)
        with naming_annotations(cfg):
            runner = command_line.build_runner(cfg)
            if args.out:
                from mmdet.evaluation import DumpDetResults

                runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
            runner.test()


if __name__ == '__main__':
    main()
