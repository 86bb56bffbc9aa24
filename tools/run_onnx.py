#!/usr/bin/env python
"""Run an exported detector on images, without PyTorch: numpy, opencv and onnxruntime (or openvino) are all it needs.

    python tools/run_onnx.py FILE.onnx IMAGE [IMAGE ...] [--out FOLDER] [--score 0.3] [--runtime onnxruntime|openvino]

FILE.onnx is what tools/deploy.py export wrote for a whole detector; give several files of different shapes separated by
commas, and each image takes the one that it fits best.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

FORMAT = 'mixaq_mmdet.onnx'
IN_FLOAT = {'LP_TRANSFORMS_MODE': 'NO'}  # OpenVINO's setting that leaves quantized products in float
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class Model(NamedTuple):
    """A loaded file: how it is run, and what it says about itself."""

    run: Run
    facts: dict[str, Any]


class Detection(NamedTuple):
    """One object in the original image: (x1, y1, x2, y2), score, label, and its (H, W) bool mask or None."""

    box: np.ndarray
    score: float
    label: int
    mask: np.ndarray | None


def load(path: Path, runtime: str = 'onnxruntime') -> Model:
    """Load a file; a ValueError for one that is no exported detector."""
    if not path.is_file():
        raise ValueError(f'{str(path)!r} is not a file; give what tools/deploy.py export wrote')
    run, texts = (_load_openvino if runtime == 'openvino' else _load_onnxruntime)(path)
    if texts.get('format') != FORMAT or texts.get('scope') != 'detector':
        raise ValueError(f'{str(path)!r} is not a detector that tools/deploy.py export wrote with --scope detector')
    words = ('format', 'version', 'target', 'scope', 'input', 'config')
    return Model(run, {key: text if key in words else json.loads(text) for key, text in texts.items()})


def _load_onnxruntime(path: Path) -> tuple[Run, dict[str, str]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    texts = session.get_modelmeta().custom_metadata_map
    if int(texts.get('products_beyond_16_bits', 0)) and not _has_vnni():
        raise ValueError(
            f'{str(path)!r} has int8 weights, which ONNX Runtime computes wrongly on this CPU: it has no VNNI; export '
            'without --int8-weights'
        )
    return lambda feed: session.run(None, feed), texts


def _has_vnni() -> bool:
    """Whether the CPU has VNNI, or does not say."""
    try:
        facts = Path('/proc/cpuinfo').read_text()
    except OSError:
        return True
    return 'flags' not in facts or 'vnni' in facts


def _load_openvino(path: Path) -> tuple[Run, dict[str, str]]:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    texts = dict(model.get_rt_info('framework').value) if model.has_rt_info('framework') else {}
    options = {}
    if int(texts.get('products_beyond_16_bits', 0)) and not _is_exact(core):
        options = IN_FLOAT
        print(f'{path}: OpenVINO saturates int8 products on this CPU, which has no VNNI; they run in float instead')
    compiled = core.compile_model(model, 'CPU', options)
    return lambda feed: list(compiled(feed).values()), texts


def _is_exact(core: Any) -> bool:
    """Whether OpenVINO computes the largest products of uint8 and int8 codes right on this CPU."""
    import openvino
    from openvino import opset13 as ops

    width = 64
    image = ops.parameter([16, width], np.float32)
    codes = ops.fake_quantize(image, *(np.float32(x) for x in (0, 255, 0, 255)), 256)
    weight = ops.multiply(ops.convert(ops.constant(np.full((16, width), 127, np.int8)), np.float32), np.float32(1))
    probe = core.compile_model(openvino.Model([ops.matmul(codes, weight, False, True)], [image]), 'CPU')
    (out,) = probe([np.full((16, width), 255, np.float32)]).values()
    return bool((out == 255 * 127 * width).all())


def resized(image: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """As the test pipeline resizes: bilinear, to the scale (longest, shortest side), or not at all."""
    spec = facts['resize']
    if spec is None:
        return image
    height, width = image.shape[:2]
    if not spec['keep_ratio']:
        return cv2.resize(image, tuple(spec['scale']), interpolation=cv2.INTER_LINEAR)
    longest, shortest = max(spec['scale']), min(spec['scale'])
    factor = min(longest / max(height, width), shortest / min(height, width))
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def choose(models: list[Model], size: tuple[int, int]) -> Model:
    """The smallest input that an image of ``size`` (height, width) fits into."""
    fitting = [m for m in models if m.facts['shape'][0] >= size[0] and m.facts['shape'][1] >= size[1]]
    if not fitting:
        shapes = ', '.join('x'.join(map(str, model.facts['shape'])) for model in models)
        raise ValueError(f'an image of {size[0]}x{size[1]} fits into none of {shapes}; export with --shape for it')
    return min(fitting, key=lambda model: model.facts['shape'][0] * model.facts['shape'][1])


def feed_of(image: np.ndarray, facts: dict[str, Any]) -> dict[str, np.ndarray]:
    """The inputs for a resized BGR image: padded with zeros behind the normalisation, or bytes and the size."""
    height, width = image.shape[:2]
    if facts['input'] == 'bytes':
        padded = np.zeros((1, *facts['shape'], 3), np.uint8)
        padded[0, :height, :width] = image
        return {'image': padded, 'size': np.array([height, width], np.int64)}
    pixels = image[..., ::-1] if facts['to_rgb'] else image
    normal = (pixels.astype(np.float32) - np.float32(facts['mean'])) / np.float32(facts['std'])
    padded = np.zeros((1, 3, *facts['shape']), np.float32)
    padded[0, :, :height, :width] = normal.transpose(2, 0, 1)
    return {'image': padded}


def detect(image: np.ndarray, models: list[Model], score: float = 0.3) -> tuple[list[Detection], Model]:
    """Objects of a BGR image (H, W, 3) with at least ``score``, in its own pixels, and the model that found them."""
    small = resized(image, models[0].facts)
    model = choose(models, small.shape[:2])
    dets, labels, *masks = model.run(feed_of(small, model.facts))
    scale = np.float32([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]] * 2)
    limits = np.float32([image.shape[1], image.shape[0]] * 2)
    found = []
    for row in np.flatnonzero((labels >= 0) & (dets[:, 4] >= score)):
        box = np.clip(dets[row, :4] / scale, 0, limits)
        mask = paste(masks[0][row], box, image.shape[:2], model.facts['mask_threshold']) if masks else None
        found.append(Detection(box, float(dets[row, 4]), int(labels[row]), mask))
    return found, model


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """A mask of probabilities (28, 28) inside its box, as (H, W) bool: sampled bilinearly at pixel centres."""
    out = np.zeros(size, bool)
    left, top = (max(int(np.floor(value)) - 1, 0) for value in box[:2])
    right, bottom = min(int(np.ceil(box[2])) + 1, size[1]), min(int(np.ceil(box[3])) + 1, size[0])
    width, height = box[2] - box[0], box[3] - box[1]
    if right <= left or bottom <= top or width <= 0 or height <= 0:
        return out
    columns = (np.arange(left, right, dtype=np.float32) + 0.5 - box[0]) / width * mask.shape[1] - 0.5
    rows = (np.arange(top, bottom, dtype=np.float32) + 0.5 - box[1]) / height * mask.shape[0] - 0.5
    grid = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    out[top:bottom, left:right] = cv2.remap(mask.astype(np.float32), *grid, cv2.INTER_LINEAR) >= threshold
    return out


def draw(image: np.ndarray, detections: list[Detection], classes: list[str]) -> np.ndarray:
    """A copy with boxes, names and masks; one colour for each class."""
    out = image.copy()
    for box, score, label, mask in reversed(detections):
        hue = np.uint8([[[label * 47 % 180, 200, 255]]])
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0]
        if mask is not None:
            out[mask] = (0.5 * out[mask] + 0.5 * colour).astype(np.uint8)
        corners = [int(value) for value in box]
        drawn = tuple(int(value) for value in colour)
        cv2.rectangle(out, tuple(corners[:2]), tuple(corners[2:]), drawn, 2)
        name = f'{_name(classes, label)} {score:.2f}'
        cv2.putText(out, name, (corners[0], max(corners[1] - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.5, drawn, 1)
    return out


def _name(classes: list[str], label: int) -> str:
    return classes[label] if label < len(classes) else f'class {label}'


def window_shares(facts: dict[str, Any]) -> str:
    """How many windows of an image ran in each tier, over all block pairs."""
    if not facts.get('windows'):
        return 'every window'
    totals = np.sum(facts['windows'], axis=0)
    tiers = zip(('high', 'low', 'skipped'), totals, strict=True)
    return ', '.join(f'{100 * count / totals.sum():.0f} % {name}' for name, count in tiers)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', help='FILE.onnx, or several of them separated by commas')
    parser.add_argument('images', nargs='+', type=Path, help='what OpenCV reads')
    parser.add_argument('--out', type=Path, default=Path('outputs'), help='folder for the drawn images')
    parser.add_argument('--score', type=float, default=0.3, help='least score that is drawn')
    parser.add_argument('--runtime', choices=('onnxruntime', 'openvino'), default='onnxruntime')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        models = [load(Path(path), args.runtime) for path in args.models.split(',')]
        args.out.mkdir(parents=True, exist_ok=True)
        for path in args.images:
            image = cv2.imread(str(path))
            if image is None:
                raise ValueError(f'{str(path)!r} is not an image that OpenCV can read')
            start = time.perf_counter()
            found, model = detect(image, models, args.score)
            seconds = time.perf_counter() - start
            written = args.out / f'{path.stem}.png'
            cv2.imwrite(str(written), draw(image, found, model.facts['classes']))
            print(f'{path}: {len(found)} objects in {seconds:.3f} s; windows: {window_shares(model.facts)}; {written}')
    except ValueError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
