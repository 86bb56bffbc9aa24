"""What a user of a converted detector sees: stock mmdet in float32 against neck, heads and backbone on integers.

    python benchmarks/deploy_detector.py [--quick] [--rivals] [--config CONFIG] [--size 800x1216] [--rounds 5]
                                         [--threads 2] [--json docs/results/deploy_detector.json]

The detector of a float config (Mask R-CNN Swin-T by default) with random weights of a fixed seed, W8A8, calibrated on
noise. The work is fixed: score_thr is 0, so that as many detections come out as ``max_per_img`` allows. Two times:

- model only: a padded image to detections with masks, and what each part takes of it;
- file to masks: a JPEG file to results, as ``inference_detector`` does.

Rounds interleave, ratios are medians of rounds. Beside stock and the whole detector on integers there are stock with
backbone and neck under bf16 autocast (mmcv's operators take no bf16), eager and compiled, a converted backbone with
float neck and heads, half of the windows skipped, and the same W8A8 model exported to ONNX Runtime and OpenVINO; then
the integer backbone on twenty shapes of COCO images, each seen for the first and for the second time. ``--quick``
leaves all of these out. ``--rivals`` adds what others make of the exported float detector: ONNX Runtime and
OpenVINO in float, OpenVINO in bf16, ONNX Runtime's static int8 and NNCF's int8, both calibrated on noise too.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from deploy_plots import plot_detector
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from rival_quantizers import nncf_int8, onnx_session, onnx_static_int8, openvino_session
from timing import alternate, describe_device, ratios

from mixaq_mmdet.analysis.detector_latency import sample_of, watched
from mixaq_mmdet.deploy import convert_model
from mixaq_mmdet.deploy.export import export_model
from mixaq_mmdet.deploy.export.targets import find_target
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.reporting.files import write_whole

STOCK_CONFIG = 'configs/swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py'
QUANT = {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'w_symmetric': True}
STOCK, WHOLE, BACKBONE, HALF, BF16, COMPILED = (
    'stock float',
    'integers',
    'integer backbone',
    'integers, half pruned',
    'stock bf16 maps',
    'stock compiled bf16 maps',
)
# sides beside 640 pixels that COCO images have; each gives another shape, in either direction
COCO_SIDES = (600, 560, 520, 500, 480, 460, 440, 427, 384, 360)
COCO_SIZES = [size for side in COCO_SIDES for size in ((side, 640), (640, side))]
SETTLE = 0.2  # seconds in which the threads of another runtime stop to spin
EXPORTED = ('onnxruntime', 'openvino')
Works = dict[str, Callable[[], Any]]


def padded_shape(height: int, width: int, short: int = 800, long: int = 1333, multiple: int = 32) -> tuple[int, int]:
    """The tensor that mmdet's test pipeline makes of an image: resized into (short, long), padded to a multiple."""
    scale = min(short / min(height, width), long / max(height, width))
    sides = (int(side * scale + 0.5) for side in (height, width))
    padded = [-(-side // multiple) * multiple for side in sides]
    return padded[0], padded[1]


def detectors(
    config: str | None, weights: str | None, size: tuple[int, int], quick: bool
) -> tuple[dict[str, Any], Any]:
    """The float detector and its integer twins; the simulated one that they come from."""
    path = config or Path(str(find_spec('mmdet').origin)).parent / '.mim' / STOCK_CONFIG
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    for part in (cfg.model.test_cfg, cfg.model.test_cfg.get('rcnn')):
        if part is not None and 'score_thr' in part:
            part.score_thr = 0.0
    # what inference_detector reads
    cfg.test_dataloader = dict(dataset=dict(pipeline=pipeline(size)))
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        plain = MODELS.build(cfg.model).eval()
        if weights:
            load_checkpoint(plain, weights, map_location='cpu')
        model = cfg.model.copy()
        model.backbone.update(type='TwoBranchSwin', quant=QUANT)
        model.backbone.pop('convert_weights', None)
        has_masks = bool(model.get('roi_head', {}).get('mask_head'))
        heads = {**QUANT, **({'deconvolution': True} if has_masks else {})}
        model.update(base=model.type, type='QuantDetector', detector_quant=heads)
        simulated = MODELS.build(model).eval()
        simulated.load_state_dict(plain.state_dict(), strict=False)
        noise = torch.randint(0, 255, (3, *size), generator=torch.Generator().manual_seed(2)).byte()
        Calibrator(simulated).run([{'inputs': [noise], 'data_samples': [sample_of(size)]}])
        found = {STOCK: plain, WHOLE: convert_model(simulated)}
        if not quick:
            model.update(type=model.pop('base'))
            model.pop('detector_quant')
            alone = MODELS.build(model).eval()
            own = alone.state_dict()
            alone.load_state_dict({name: x for name, x in simulated.state_dict().items() if name in own})
            found[BACKBONE] = convert_model(alone)
            found[HALF] = convert_model(simulated)
            found[HALF].backbone.set_ratios(prune=0.5)
            found[BF16] = in_bf16(plain)
            found[COMPILED] = in_bf16(plain, compiled=True)
    for detector in found.values():
        detector.cfg, detector.dataset_meta = cfg, {}
    return found, simulated


def in_bf16(plain: Any, compiled: bool = False) -> Any:
    """A copy whose backbone and neck run under autocast, eager or compiled."""
    twin = copy.deepcopy(plain)
    extract = torch.compile(twin.extract_feat, dynamic=False) if compiled else twin.extract_feat

    def extract_in_bf16(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast('cpu', torch.bfloat16):
            return tuple(x.float() for x in extract(images))

    object.__setattr__(twin, 'extract_feat', extract_in_bf16)
    return twin


def pipeline(size: tuple[int, int]) -> list[dict[str, Any]]:
    """mmdet's test pipeline, for images that come out at ``size``."""
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    resize = {'type': 'Resize', 'scale': (max(size), min(size)), 'keep_ratio': True}
    return [{'type': 'LoadImageFromFile'}, resize, {'type': 'PackDetInputs', 'meta_keys': keys}]


def exported(simulated: Any, target: str, size: tuple[int, int], folder: Path) -> Callable[[torch.Tensor], Any]:
    """The simulated detector as tools/deploy.py export writes it, in its runtime: (1, 3, H, W) to detections."""
    path = folder / f'{target}.onnx'
    print(export_model(simulated, path, target, size, timed=False))
    session = find_target(target).session(path, torch.get_num_threads())
    return lambda images: session({'image': images.numpy()})


def rivals(plain: Any, size: tuple[int, int], folder: Path) -> dict[str, Callable[[torch.Tensor], Any]]:
    """The float detector's export in both runtimes: as it is, and in their own int8; (1, 3, H, W) to detections."""
    source, static = folder / 'float.onnx', folder / 'static_int8.onnx'
    export_model(plain, source, 'onnxruntime', size, timed=False)
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    # most of the work is convolutions, which are integers only where their outputs are quantized
    onnx_static_int8(source, static, noise, float_outputs=('MatMul', 'Gemm'))
    return {
        'float, onnxruntime': onnx_session(source),
        'static int8, onnxruntime': onnx_session(static, disabled_optimizers=['MatMulAddFusion']),
        'float, openvino': openvino_session(source),
        'bf16, openvino': openvino_session(source, precision='bf16'),
        'NNCF int8, openvino': openvino_session(nncf_int8(source, noise), precision='bf16'),
    }


def model_only(models: dict[str, Any], size: tuple[int, int], exports: Mapping[str, Callable[..., Any]]) -> Works:
    """A padded image to detections with masks; of exported models masks inside their boxes, without pasting."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))

    def run(model: Any) -> Any:
        return model(images, [sample_of(size)], mode='predict')

    works: Works = {name: lambda model=model: run(model) for name, model in models.items()}
    return works | {name: lambda work=work: work(images) for name, work in exports.items()}


def file_to_masks(models: dict[str, Any], size: tuple[int, int], folder: Path) -> Works:
    """A JPEG file to results."""
    path = image_file(size, folder)
    names = (STOCK, WHOLE)
    return {name: lambda name=name: inference_detector(models[name], str(path)) for name in names}


def image_file(size: tuple[int, int], folder: Path) -> Path:
    """A JPEG file of smooth noise."""
    noise = np.random.default_rng(3).integers(0, 255, (*(side // 8 for side in size), 3), dtype=np.uint8)
    path = folder / 'image.jpg'
    cv2.imwrite(str(path), cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path


def watch(model: Any) -> dict[str, list[float]]:
    """Seconds of each part of a model from now on; of the backbone, too."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def noting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        return _timed(work, seconds[name])

    methods = {(model.backbone, 'forward'): noting('backbone', model.backbone.forward), **watched(model, noting)}
    for (module, name), method in methods.items():
        object.__setattr__(module, name, method)
    return seconds


def _timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = work(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    return timed


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
    parser.add_argument('--quick', action='store_true', help='stock and integers alone, two rounds')
    parser.add_argument('--rivals', action='store_true', help="other toolkits' int8 of the float detector too")
    parser.add_argument('--config', help='of a float detector with a Swin backbone')
    parser.add_argument('--weights', help='its checkpoint; random weights without')
    parser.add_argument('--size', default='800x1216', metavar='HxW')
    parser.add_argument('--rounds', type=int, help='5, with --quick 2')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--json', type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse_args(argv)
    torch.set_num_threads(options.threads)
    height, width = (int(side) for side in options.size.split('x'))
    size, rounds = (height, width), options.rounds or (2 if options.quick else 5)
    models, simulated = detectors(options.config, options.weights, size, options.quick)
    scope = DefaultScope.overwrite_default_scope('mmdet')
    with scope, torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        targets = () if options.quick else EXPORTED
        exports = {f'exported, {name}': exported(simulated, name, size, Path(folder)) for name in targets}
        if options.rivals:
            exports |= rivals(models[STOCK], size, Path(folder))
        parts = {name: watch(models[name]) for name in (STOCK, WHOLE)}
        seconds = {'model only': alternate(model_only(models, size, exports), rounds, settle=SETTLE)}
        medians = {name: {part: statistics.median(x) for part, x in own.items() if x} for name, own in parts.items()}
        seconds['file to masks'] = alternate(file_to_masks(models, size, Path(folder)), rounds)
        shapes = [] if options.quick else over_shapes(models[WHOLE].backbone, [padded_shape(*x) for x in COCO_SIZES])
    faster = {what: ratios(found, WHOLE)[STOCK]['median'] for what, found in seconds.items()}
    for part in medians[STOCK]:
        print(f'{part}: {medians[STOCK][part]:.3f} s, on integers {medians[WHOLE].get(part, float("nan")):.3f} s')
    for name, found in ratios(seconds['model only'], STOCK).items():
        print(f'{name} / {STOCK}: {found["median"]:.3f} ({found["least"]:.3f} .. {found["most"]:.3f})')
    if shapes:
        slower = statistics.median(row['first'] / row['second'] for row in shapes)
        print(f'{len(shapes)} shapes: first forward {slower:.2f} times the second, median over shapes')
    print(f'whole detector: {faster["model only"]:.2f}x stock mmdet float')
    print(f'file to masks: {faster["file to masks"]:.2f}x')
    if options.json:
        found = {'size': options.size, **describe_device(), 'seconds': seconds, 'parts': medians, 'shapes': shapes}
        write_whole(options.json, json.dumps({**found, 'stock / integers': faster}, indent=1) + '\n')
        plot_detector(seconds['model only'], medians, options.json.with_suffix('.png'))


if __name__ == '__main__':
    main()
