"""The demo: a small mini-COCO set; the shipped detector, and its quantized twins, evaluated on it; pictures.

``make demo`` runs it. Everything it writes lies under data/ and outputs/, which git ignores.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

warnings.filterwarnings('ignore')  # of the host's own imports; before they happen

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import mixaq_mmdet  # noqa: F401, E402  (importing registers)
from mixaq_mmdet.engine.evaluate import Evaluation, build_dataloader, evaluate  # noqa: E402
from mixaq_mmdet.models.backbone_cost import CostMeter  # noqa: E402
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / 'data' / 'minicoco-demo'
OUTPUT = ROOT / 'outputs' / 'demo'
IMAGES = 60
SIZE = 256  # pixels
SPLITS = ('train', 'calib', 'search', 'val', 'test')
PICTURE_GRID = (2, 3)
SCORE_THRESHOLD = 0.6


class Row(NamedTuple):
    """One line of the table: a recipe, the weights it runs with, and the share of windows at low bits."""

    name: str
    config: Path
    checkpoint: Path
    low_ratios: Any = None


MIXAQ_RECIPE = ROOT / 'configs/mini/mask-rcnn_swin-mini_mixaq-ptq-w4a8.py'
CALIBRATED = OUTPUT / 'mixaq' / 'epoch_1.pth'
ROWS = (
    Row(
        'float',
        ROOT / 'configs/mini/mask-rcnn_swin-mini_float.py',
        ROOT / 'checkpoints/mask-rcnn_swin-mini_float.pth',
    ),
    Row('W4A8, all windows alike', MIXAQ_RECIPE, CALIBRATED, low_ratios=0.0),
    Row('W4A8, low windows at A4', MIXAQ_RECIPE, CALIBRATED),
)


def make_data() -> None:
    """A val split of ``IMAGES`` images; the other splits as small as they can be."""
    if (DATA / 'MANIFEST.sha256').exists():
        return
    sizes = [word for split in SPLITS for word in (f'--{split}', str(IMAGES if split == 'val' else 4))]
    command = [sys.executable, str(ROOT / 'tools/make_minicoco.py'), '--out', str(DATA), '--overwrite', *sizes]
    subprocess.run(command, check=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The host logs every config and metric; here the table says it."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def calibrate() -> None:
    """Quantize the shipped detector without training, as a user would: ``tools/train.py`` on a PTQ recipe."""
    if CALIBRATED.exists():
        return
    options = ['--work-dir', str(CALIBRATED.parent), '--cfg-options', 'train_cfg.num_images=4']
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(MIXAQ_RECIPE), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'calibration failed:\n{done.stdout}{done.stderr}')


def measure(row: Row) -> tuple[Evaluation, dict[str, Any] | None, float]:
    """Evaluate ``row`` and time it: (result, cost of its backbone where it is quantized, seconds)."""
    with quiet():
        config = Config.fromfile(row.config)
    if row.low_ratios is not None:
        config.model.backbone.low_ratios = row.low_ratios
    started = time.perf_counter()
    with quiet():
        result = evaluate(config, row.checkpoint)
    seconds = time.perf_counter() - started
    backbone = result.detector.backbone
    if not isinstance(backbone, TwoBranchSwin):
        return result, None, seconds
    meter = CostMeter()
    meter.watch(backbone, (torch.empty(1, 3, SIZE, SIZE),))
    return result, meter.summary(backbone), seconds


def draw(image: np.ndarray, prediction, classes: tuple[str, ...]) -> np.ndarray:
    """Masks, boxes and names of the detections over a BGR image (H, W, 3)."""
    scale = 2
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    palette = cv2.applyColorMap(np.linspace(0, 255, len(classes), dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0]
    kept = prediction[prediction.scores >= SCORE_THRESHOLD]
    for box, label, score, mask in zip(kept.bboxes, kept.labels, kept.scores, kept.masks, strict=True):
        colour = tuple(int(value) for value in palette[int(label)])
        grown = cv2.resize(mask.numpy().astype(np.uint8), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(canvas, outlines, -1, colour, 2)
        left, top = (int(value * scale) for value in box[:2])
        text = f'{classes[int(label)]} {float(score):.2f}'
        place = (max(left, 2), max(top - 3, 12))
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
        x, y = min(place[0], canvas.shape[1] - width - 2), place[1]
        cv2.rectangle(canvas, (x - 1, y - height - 2), (x + width + 1, y + 3), (0, 0, 0), cv2.FILLED)
        cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def picture(row: Row, detector: torch.nn.Module) -> Path:
    """Detections on the first images of the set, as one sheet."""
    config = Config.fromfile(row.config)
    rows, columns = PICTURE_GRID
    with quiet():
        dataset = build_dataloader(config.test_dataloader, limit=rows * columns).dataset
    tiles = []
    for index in range(rows * columns):
        sample = dataset[index]
        with torch.no_grad():
            result = detector.test_step(pseudo_collate([sample]))[0]
        image = cv2.imread(sample['data_samples'].img_path)
        tiles.append(draw(image, result.pred_instances.cpu(), dataset.metainfo['classes']))
    sheet = np.vstack([np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)])
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / 'detections.png'
    cv2.imwrite(str(path), sheet)
    return path


def main() -> int:
    os.chdir(ROOT)
    os.environ['MINICOCO_ROOT'] = f'{DATA.relative_to(ROOT)}/'
    console = Console()
    console.print(f'[bold]mixaq_mmdet demo[/bold]: {IMAGES} images of mini-COCO, evaluated by pycocotools')
    make_data()

    console.print('calibrating the quantized detector on 4 images ...')
    calibrate()
    columns = ('model', 'box AP', 'box AP50', 'mask AP', 'mask AP50', 'act. bits', 'BOPs', 'seconds')
    caption = (
        f'{IMAGES} images tell AP to a few points. Activation bits: mean over the backbone; BOPs: its bit operations '
        'against all windows high, a count and not a speed'
    )
    table = Table(*columns, caption=caption)
    table.columns[0].no_wrap = True
    for row in ROWS:
        console.print(f'evaluating {row.name} ...')
        result, cost, seconds = measure(row)
        figures = [
            100 * result.metrics[f'coco/{key}'] for key in ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50')
        ]
        counted = ('32', '') if cost is None else (f'{cost["mean_activation_bits"]:.1f}', f'{cost["relative"]:.2f}')
        table.add_row(row.name, *(f'{figure:.1f}' for figure in figures), *counted, f'{seconds:.0f}')
    console.print(table)
    console.print(f'picture of the last: {picture(ROWS[-1], result.detector).relative_to(ROOT)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
