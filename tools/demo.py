"""The demo: a small mini-COCO set; the shipped detector, its quantized twins and an integer one on it; pictures.

``make demo`` runs it. Everything it writes lies under data/ and outputs/, which git ignores.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
import subprocess
import sys
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
from mixaq_mmdet.analysis.timing import alternate  # noqa: E402
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
ROUNDS = 15  # of timing; a forward of the small backbone takes milliseconds


class Row(NamedTuple):
    """One line of the table: a recipe, the weights it runs with, and other shares of low windows than the recipe's."""

    name: str
    config: Path
    checkpoint: Path
    low_ratios: Any = None


class Measured(NamedTuple):
    """What a row of the table says."""

    result: Evaluation
    mean_bits: float | None
    relative_cost: float | None


MIXAQ_RECIPE = ROOT / 'configs/mini/mask-rcnn_swin-mini_mixaq-ptq-w4a8.py'
CALIBRATED = OUTPUT / 'mixaq' / 'epoch_1.pth'
INTEGER = OUTPUT / 'integer' / 'mixaq.pth'
ROWS = (
    Row(
        'float',
        ROOT / 'configs/mini/mask-rcnn_swin-mini_float.py',
        ROOT / 'checkpoints/mask-rcnn_swin-mini_float.pth',
    ),
    Row('W4A8, all windows alike', MIXAQ_RECIPE, CALIBRATED, low_ratios=0.0),
    Row('W4A8, low windows at A4', MIXAQ_RECIPE, CALIBRATED),
    Row('the same on integers', INTEGER.with_suffix('.py'), INTEGER),
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


def run_tool(name: str, *arguments: Any) -> None:
    """One of this repository's tools, as a user would start it."""
    command = [sys.executable, str(ROOT / 'tools' / name), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'tools/{name} failed:\n{done.stdout}{done.stderr}')


def make_models() -> None:
    """Quantize the shipped detector without training, and turn the result into integers."""
    if not CALIBRATED.exists():
        options = ['--work-dir', CALIBRATED.parent, '--cfg-options', 'train_cfg.num_images=4']
        run_tool('train.py', MIXAQ_RECIPE, *options)
    if not INTEGER.exists():
        INTEGER.parent.mkdir(parents=True, exist_ok=True)
        run_tool('deploy.py', 'convert', MIXAQ_RECIPE, CALIBRATED, '-o', INTEGER)


def measure(row: Row) -> Measured:
    """Evaluate a row, and count its backbone's bits."""
    with quiet():
        config = Config.fromfile(row.config)
        if row.low_ratios is not None:
            config.model.backbone.low_ratios = row.low_ratios
        result = evaluate(config, row.checkpoint)
    backbone = result.detector.backbone
    if not isinstance(backbone, TwoBranchSwin):
        return Measured(result, None, None)
    meter = CostMeter()
    meter.watch(backbone, (torch.empty(1, 3, SIZE, SIZE),))
    cost = meter.summary(backbone)
    return Measured(result, cost['mean_activation_bits'], cost['relative'])


@torch.no_grad()
def relative_times(backbones: list[Any]) -> list[float]:
    """Time of each backbone for one image, in times of the first: the median over rounds, all timed in each."""
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    seconds = alternate([lambda backbone=backbone: backbone(image) for backbone in backbones], ROUNDS)
    return [statistics.median(a / b for a, b in zip(own, seconds[0], strict=True)) for own in seconds]


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


def tabulate(measured: list[Measured]) -> Table:
    """AP, bits, bit operations and time, a row each."""
    columns = ('model', 'box AP', 'AP50', 'mask AP', 'AP50', 'act. bits', 'BOPs', 'time')
    times = relative_times([each.result.detector.backbone for each in measured])
    caption = (
        f'{IMAGES} images tell AP to a few points. Of the backbone: mean activation bits; bit operations against all '
        'windows high, a count and not a speed; measured time against float, here and now. The middle rows simulate '
        'integers in float, which costs time; the last computes with them'
    )
    table = Table(*columns, caption=caption)
    table.columns[0].no_wrap = True
    for row, each, time in zip(ROWS, measured, times, strict=True):
        keys = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50')
        figures = [f'{100 * each.result.metrics[f"coco/{key}"]:.1f}' for key in keys]
        counts = ('32', '') if each.mean_bits is None else (f'{each.mean_bits:.1f}', f'{each.relative_cost:.2f}')
        table.add_row(row.name, *figures, *counts, f'{time:.2f}')
    return table


def main() -> int:
    os.chdir(ROOT)
    os.environ['MINICOCO_ROOT'] = f'{DATA.relative_to(ROOT)}/'
    console = Console()
    console.print(f'[bold]mixaq_mmdet demo[/bold]: {IMAGES} images of mini-COCO, evaluated by pycocotools')
    make_data()

    console.print('calibrating the quantized detector on 4 images, then turning its backbone into integers ...')
    make_models()
    measured = []
    for row in ROWS:
        console.print(f'evaluating {row.name} ...')
        measured.append(measure(row))
    console.print(tabulate(measured))
    console.print(f'on integers: {measured[-1].result.detector.backbone.plan.line}')
    console.print(f'detections of the last: {picture(ROWS[-1], measured[-1].result.detector).relative_to(ROOT)}')
    image = sorted((DATA / 'val').glob('*'))[0]
    run_tool('visualize.py', image, MIXAQ_RECIPE, CALIBRATED, '--out', OUTPUT / 'windows')
    console.print(f'which windows ran at low bits: {(OUTPUT / "windows" / "window_map.png").relative_to(ROOT)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
