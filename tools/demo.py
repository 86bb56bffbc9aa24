"""The demo: a small mini-COCO set; the shipped detector, its quantized twins and the integer one on it; pictures.

``make demo`` runs it. Everything it writes lies under data/ and outputs/, which git ignores.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import statistics
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

warnings.filterwarnings('ignore')  # of the host's own imports; before they happen

import cv2  # noqa: E402
import demo_picture  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import mixaq_mmdet  # noqa: F401, E402  (importing registers)
from mixaq_mmdet.analysis.timing import alternate  # noqa: E402
from mixaq_mmdet.deploy.integer_layer import IntegerLayer  # noqa: E402
from mixaq_mmdet.engine.evaluate import Evaluation, build_dataloader, evaluate  # noqa: E402
from mixaq_mmdet.models.backbone_cost import CostMeter  # noqa: E402
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / 'data' / 'minicoco-demo'
OUTPUT = ROOT / 'outputs' / 'demo'
IMAGES = 60
SIZE = 256  # pixels
LOOKED_AT, COMPARED = 12, 2  # images
FEW = range(3, 6)  # objects in an image that is shown
ROUNDS = 11  # of timing


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


RECIPE = ROOT / 'configs/mini/mask-rcnn_swin-mini_mixaq-ptq-w8a8-detector.py'
CALIBRATED = OUTPUT / 'detector' / 'epoch_1.pth'
INTEGER = OUTPUT / 'integer' / 'detector.pth'
FLOAT_ROW = Row(
    'float',
    ROOT / 'configs/mini/mask-rcnn_swin-mini_float.py',
    ROOT / 'checkpoints/mask-rcnn_swin-mini_float-16k.pth',
)
LOW_ROW = Row('W8A8, low windows at A4', RECIPE, CALIBRATED)
INTEGER_ROW = Row('the same on integers', INTEGER.with_suffix('.py'), INTEGER)
ROWS = (FLOAT_ROW, Row('W8A8, all windows alike', RECIPE, CALIBRATED, low_ratios=0.0), LOW_ROW, INTEGER_ROW)


def make_data() -> None:
    """``IMAGES`` images to evaluate on and a few to calibrate with."""
    if (DATA / 'MANIFEST.sha256').exists():
        return
    options = ['--splits', 'calib', 'val', '--calib', '4', '--val', str(IMAGES), '--out', str(DATA), '--overwrite']
    subprocess.run([sys.executable, str(ROOT / 'tools/make_minicoco.py'), *options], check=True)


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
    """Quantize the whole shipped detector without training, and turn the result into integers."""
    if not CALIBRATED.exists():
        options = ['--work-dir', CALIBRATED.parent, '--cfg-options', 'train_cfg.num_images=4']
        run_tool('train.py', RECIPE, *options)
    if not INTEGER.exists():
        INTEGER.parent.mkdir(parents=True, exist_ok=True)
        run_tool('deploy.py', 'convert', RECIPE, CALIBRATED, '-o', INTEGER)


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


def first_images(count: int) -> Any:
    """The beginning of the set, as the detectors take it."""
    with quiet():
        return build_dataloader(Config.fromfile(FLOAT_ROW.config).test_dataloader, limit=count).dataset


def detect(detector: Any, sample: dict[str, Any]) -> Any:
    """Boxes, masks, scores and labels of one image."""
    with torch.no_grad():
        return detector.test_step(pseudo_collate([copy.deepcopy(sample)]))[0].pred_instances


def relative_times(detectors: list[Any]) -> list[float]:
    """Time from an image to its masks, in times of the first detector: the median of rounds, all timed in each."""
    sample = first_images(1)[0]
    seconds = alternate([lambda detector=detector: detect(detector, sample) for detector in detectors], ROUNDS)
    return [statistics.median(a / b for a, b in zip(own, seconds[0], strict=True)) for own in seconds]


def windows_of(detector: Any, sample: dict[str, Any]) -> list[Any]:
    """Which windows of the sample's image ran how, stage by stage."""
    with detector.backbone.record_windows() as records:
        detect(detector, sample)
    return list(records)


def clearest(detector: Any) -> list[dict[str, Any]]:
    """Of the first images, those with a few objects of which the detector is most certain."""
    images, scores = first_images(LOOKED_AT), {}
    for index in range(LOOKED_AT):
        found = detect(detector, images[index])
        kept = demo_picture.certain(found)
        scores[index] = float(found.scores[kept].mean()) if len(kept) in FEW else 0.0
    return [images[index] for index in sorted(scores, key=lambda index: -scores[index])[:COMPARED]]


def comparison(measured: list[Measured], times: list[float]) -> Path:
    """The same images through the float, the simulated and the integer detector, side by side."""
    samples = clearest(measured[ROWS.index(FLOAT_ROW)].result.detector)
    columns = []
    for row, title in zip(
        (FLOAT_ROW, LOW_ROW, INTEGER_ROW), ('Float', 'Quantized, simulated', 'Integers'), strict=True
    ):
        result, bits, _ = measured[ROWS.index(row)]
        kind = f'activations of {bits:.1f} bits on average' if bits else '32 bits'
        time = 'time 1' if row is FLOAT_ROW else f'{times[ROWS.index(row)]:.2f} of the float time'
        figures = f'{kind}\nbox AP {100 * result.metrics["coco/bbox_mAP"]:.1f}, {time}'
        windows = [windows_of(result.detector, sample) for sample in samples] if row is LOW_ROW else []
        columns.append(
            demo_picture.Column(title, figures, [detect(result.detector, sample) for sample in samples], windows)
        )
    images = [cv2.imread(sample['data_samples'].img_path)[..., ::-1] / 255 for sample in samples]
    engine = measured[-1].result.detector.backbone.plan.line
    foot = 'Orange windows (here of the first block) ran with four bits, all others with eight.'
    if 'plain torch' in engine:
        foot += '\nThis CPU has no int8 products: integers run in plain torch, which saves no time.'
    OUTPUT.mkdir(parents=True, exist_ok=True)
    classes = first_images(1).metainfo['classes']
    return demo_picture.write(OUTPUT / 'comparison.png', images, columns, classes, foot)


def tabulate(measured: list[Measured], times: list[float]) -> Table:
    """AP, bits, bit operations and time, a row each."""
    columns = ('model', 'box AP', 'AP50', 'mask AP', 'AP50', 'act. bits', 'BOPs', 'time')
    caption = (
        f'{IMAGES} images tell AP to a few points. Of the backbone: mean activation bits; bit operations against all '
        'windows high, a count and not a speed. Of the whole detector: measured time from an image to its masks '
        'against float, here and now. The middle rows simulate integers in float, which costs time; the last computes '
        'with them'
    )
    table = Table(*columns, caption=caption)
    table.columns[0].no_wrap = True
    for row, each, time in zip(ROWS, measured, times, strict=True):
        keys = ('bbox_mAP', 'bbox_mAP_50', 'segm_mAP', 'segm_mAP_50')
        figures = [f'{100 * each.result.metrics[f"coco/{key}"]:.1f}' for key in keys]
        counts = ('32', '') if each.mean_bits is None else (f'{each.mean_bits:.1f}', f'{each.relative_cost:.2f}')
        table.add_row(row.name, *figures, *counts, f'{time:.2f}')
    return table


def integer_parts(detector: Any) -> str:
    """What runs as what."""
    ways = Counter(layer.make_runner() for layer in detector.modules() if isinstance(layer, IntegerLayer))
    layers = ', '.join(f'{count} layers as {way}' for way, count in ways.items())
    return f'{detector.backbone.plan.line}; neck and heads: {layers}'


def main() -> int:
    os.chdir(ROOT)
    os.environ['MINICOCO_ROOT'] = f'{DATA.relative_to(ROOT)}/'
    console = Console()
    console.print(f'[bold]mixaq_mmdet demo[/bold]: {IMAGES} images of mini-COCO, evaluated by pycocotools')
    make_data()

    console.print('calibrating the quantized detector on 4 images, then turning all of it into integers ...')
    make_models()
    measured = []
    for row in ROWS:
        console.print(f'evaluating {row.name} ...')
        measured.append(measure(row))
    detectors = [each.result.detector for each in measured]
    times = relative_times(detectors)
    console.print(tabulate(measured, times))
    console.print(f'on integers: {integer_parts(detectors[-1])}')
    console.print(f'float, low windows and integers side by side: {comparison(measured, times).relative_to(ROOT)}')
    image = sorted((DATA / 'val').glob('*'))[0]
    run_tool('visualize.py', image, RECIPE, CALIBRATED, '--out', OUTPUT / 'windows')
    console.print(f'which windows ran at low bits: {(OUTPUT / "windows" / "window_map.png").relative_to(ROOT)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
