"""What a user of the integer backbone sees: the whole detector end to end, and many image shapes one after another.

    python benchmarks/deploy_detector.py [--config CONFIG] [--weights CKPT] [--size 800x1216] [--rounds 5]
                                         [--threads 2] [--json docs/results/deploy_detector.json]

The detector of a float config (Mask R-CNN Swin-T by default, random weights of a fixed seed unless given) with its
backbone as it is and as W8A8 integers: seconds per image, and the backbone's share. Rounds interleave. Then the integer
backbone on twenty shapes of COCO images, each seen for the first and for the second time: what is prepared per shape
shows as a first time above the second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from timing import alternate, describe_device, ratios

from mixaq_mmdet.deploy.convert import convert_backbone
from mixaq_mmdet.deploy.files import integer_config
from mixaq_mmdet.engine.atomic_file import write_whole
from mixaq_mmdet.engine.calibration import Calibrator

STOCK_CONFIG = 'configs/swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'
QUANT = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'w_symmetric': True}
# sides beside 640 pixels that COCO images have; each gives another shape, in either direction
COCO_SIDES = (600, 560, 520, 500, 480, 460, 440, 427, 384, 360)
COCO_SIZES = [size for side in COCO_SIDES for size in ((side, 640), (640, side))]


def padded_shape(height: int, width: int, short: int = 800, long: int = 1333, multiple: int = 32) -> tuple[int, int]:
    """The tensor that mmdet's test pipeline makes of an image: resized into (short, long), padded to a multiple."""
    scale = min(short / min(height, width), long / max(height, width))
    sides = (int(side * scale + 0.5) for side in (height, width))
    padded = [-(-side // multiple) * multiple for side in sides]
    return padded[0], padded[1]


def detectors(config: str | None, weights: str | None, size: tuple[int, int]) -> dict[str, Any]:
    """The float detector and its integer twin."""
    path = config or Path(str(find_spec('mmdet').origin)).parent / '.mim' / STOCK_CONFIG
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        plain = MODELS.build(cfg.model).eval()
        if weights:
            load_checkpoint(plain, weights, map_location='cpu')
        cfg.model.backbone.update(type='TwoBranchSwin', quant=QUANT)
        cfg.model.backbone.pop('convert_weights', None)
        simulated = MODELS.build(cfg.model).eval()
        simulated.load_state_dict(plain.state_dict(), strict=False)
        Calibrator(simulated.backbone).run([torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))])
        twin = MODELS.build(integer_config(cfg).model).eval()
    heads = {name: value for name, value in plain.state_dict().items() if not name.startswith('backbone.')}
    backbone = {f'backbone.{name}': value for name, value in convert_backbone(simulated.backbone).items()}
    twin.load_state_dict({**heads, **backbone})
    return {'float': plain, 'integer': twin}


def end_to_end(models: dict[str, Any], size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Seconds of the whole detectors and of their backbones, interleaved."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    sample = DetDataSample(
        metainfo={'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0), 'pad_shape': size}
    )
    works = {}
    for name, model in models.items():
        works[f'{name} detector'] = lambda model=model: model(images, [sample.clone()], mode='predict')
        works[f'{name} backbone'] = lambda model=model: model.backbone(images)
    seconds = alternate(works, rounds)
    pairs = {name: zip(seconds[f'{name} backbone'], seconds[f'{name} detector'], strict=True) for name in models}
    share = {name: statistics.median(part / whole for part, whole in pairs[name]) for name in models}
    return {'seconds': seconds, 'ratio to float': ratios(seconds, 'float detector'), 'backbone share': share}


def over_shapes(backbone: Any, shapes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """First and second time of every shape, all first times before all second ones."""
    times: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(2):
        for shape, seconds in times.items():
            images = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
            start = time.perf_counter()
            backbone(images)
            seconds.append(time.perf_counter() - start)
    return [{'shape': list(shape), 'first': first, 'second': second} for shape, (first, second) in times.items()]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='of a float detector with a Swin backbone')
    parser.add_argument('--weights', help='its checkpoint; random weights without')
    parser.add_argument('--size', default='800x1216', metavar='HxW')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--json', type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse_args(argv)
    torch.set_num_threads(options.threads)
    height, width = (int(side) for side in options.size.split('x'))
    models = detectors(options.config, options.weights, (height, width))
    with torch.no_grad():
        whole = end_to_end(models, (height, width), options.rounds)
        shapes = over_shapes(models['integer'].backbone, [padded_shape(*size) for size in COCO_SIZES])
    for name, share in whole['backbone share'].items():
        median = statistics.median(whole['seconds'][f'{name} detector'])
        print(f'{name} detector: {median:.3f} s an image, {share:.0%} of it the backbone')
    print(f'integer / float detector: {whole["ratio to float"]["integer detector"]["median"]:.3f}')
    slower = statistics.median(row['first'] / row['second'] for row in shapes)
    print(f'{len(shapes)} shapes: first forward {slower:.2f} times the second, median over shapes')
    if options.json:
        found = {'size': options.size, **describe_device(), 'detector': whole, 'shapes': shapes}
        write_whole(options.json, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
