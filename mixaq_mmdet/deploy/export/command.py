"""``tools/deploy.py export``: its arguments, and the way from a config to a file and its report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from mixaq_mmdet.engine import command_line
from mixaq_mmdet.engine.calibration.data import calibration_loader, reading_pipeline
from mixaq_mmdet.engine.checkpoints.files import dataset_meta
from mixaq_mmdet.registry import MODELS

from .evaluation import check_evaluation, evaluate
from .parity import ParityReport
from .run import check_shape, export_model
from .scopes import SCOPES
from .targets import TARGETS

DEFAULT_SHAPE = (800, 1216)
USUAL_SHAPES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument('config', help='config that the checkpoint was calibrated or trained with')
    parser.add_argument('checkpoint', help='calibrated or trained checkpoint, or a float one')
    parser.add_argument('-o', '--out', required=True, type=Path, metavar='FILE.onnx', help='where to write the model')
    parser.add_argument('--target', choices=list(TARGETS), default='onnxruntime', help='the runtime')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        action='append',
        metavar=('H', 'W'),
        help=f'input with its padding, by default {DEFAULT_SHAPE}; given again, another file for each',
    )
    parser.add_argument('--scope', choices=SCOPES, default='detector', help='what of the model')
    parser.add_argument('--bytes', action='store_true', help='take BGR bytes and the image size, normalise inside')
    parser.add_argument('--images', type=_count, default=2, metavar='N', help='calibration images to compare on')
    parser.add_argument('--emulate', nargs='+', default=[], metavar='ROLE', help='roles that may be emulated in float')
    parser.add_argument('--evaluate', type=_count, default=0, metavar='N', help='AP of both models on N images of val')
    parser.add_argument(
        '--any-cpu', action='store_true', help='no products that saturate on CPUs without VNNI (openvino: in float)'
    )
    parser.add_argument(
        '--residuals', action='store_true', help='tensorrt: quantize residuals too, on their ranges over --images'
    )
    parser.add_argument(
        '--int8-weights', action='store_true', help='onnxruntime: faster on CPUs with AMX, wrong on CPUs without VNNI'
    )
    parser.add_argument('--no-times', action='store_true', help='measure no seconds')
    parser.add_argument('--strict', action='store_true', help='fail if most of it runs in float, or wrongly')
    command_line.add_config_arguments(parser)


def _count(text: str) -> int:
    """A whole number that is not negative."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f'{text!r} must be a whole number of at least 0')
    return int(text)


def export_from(args: argparse.Namespace, cfg: Config) -> list[ParityReport]:
    """Write a file for each shape, with its report beside it."""
    shapes = list(dict.fromkeys(check_shape(shape) for shape in args.shape or [DEFAULT_SHAPE]))
    if args.evaluate:
        check_evaluation(cfg, args.target, args.scope, args.bytes)
    model = load_model(cfg, command_line.check_checkpoint(args.checkpoint, 'checkpoint'))
    reports = []
    for shape in shapes:
        path = args.out if len(shapes) == 1 else args.out.with_name(f'{args.out.stem}-{shape[0]}x{shape[1]}.onnx')
        images, usual = calibration_images(cfg, model, args.images, shape)
        report = export_model(
            model,
            path,
            args.target,
            shape,
            args.scope,
            images or None,
            args.bytes,
            args.emulate,
            timed=not args.no_times,
            cfg=cfg,
            any_cpu=args.any_cpu,
            residuals=args.residuals,
            int8_weights=args.int8_weights,
        )
        if usual and shape not in usual:
            listed = ', '.join(f'{height} {width}' for height, width in usual[:USUAL_SHAPES])
            report.notes.append(f'WARNING: no image of the test pipeline has shape {shape}; usual ones are {listed}')
        if args.evaluate:
            report.precision = evaluate(cfg, model, path, args.target, shape, args.evaluate)
        report.write(path.with_suffix('.json'))
        reports.append(report)
    return reports


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """The detector of a config with its weights, in eval mode."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model_cfg = cfg.model.copy()
    if model_cfg.get('backbone') is not None:
        model_cfg.backbone.init_cfg = None
    model: Any = MODELS.build(model_cfg)
    loaded = load_checkpoint(model, checkpoint, map_location='cpu')
    model.dataset_meta = dataset_meta(loaded) or {}
    return model.eval()


@torch.no_grad()
def calibration_images(
    cfg: Config, model: Any, number: int, shape: tuple[int, int]
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Up to ``number`` images (1, 3, H, W) that fit into ``shape``, and the shapes that were seen, commonest first."""
    if number < 1 or cfg.get('train_dataloader') is None or not hasattr(model, 'data_preprocessor'):
        return [], []
    images: list[Tensor] = []
    seen: list[tuple[int, int]] = []
    for x in _read(cfg, model, max(4 * number, 8)):
        size = (int(x.shape[-2]), int(x.shape[-1]))
        seen.append(size)
        if size[0] <= shape[0] and size[1] <= shape[1]:
            images.append(x)
        if len(images) == number:
            break
    return images, sorted(set(seen), key=seen.count, reverse=True)


def _read(cfg: Config, model: Any, number: int) -> Iterator[Tensor]:
    for data in calibration_loader(cfg.train_dataloader, reading_pipeline(cfg), number, seed=0):
        yield model.data_preprocessor(data, False)['inputs']
