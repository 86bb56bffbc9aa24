"""A training step with learned quantizers and sampled ratios against the stock float step of the same detector.

    python benchmarks/qat.py [--quick] [--batch 8] [--draws 50] [--clock wall] [--json docs/results/qat_cost.json]

The small Mask R-CNN at its training size, the same images and boxes in every arm: forward, losses, backward. Beside our
quantizers stand the same quantizers composed of torch operations ('naive') and torch's own learnable operation, which
knows one step per tensor and no offsets. Times alternate in one process, a new draw of ratios each round, and the mean
of per-round ratios counts; each peak of memory is taken in a process of its own. The last lines are the verdicts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from timing import alternate, describe_device, peak_above_start
from torch import Tensor

from mixaq_mmdet.engine.atomic_file import write_whole
from mixaq_mmdet.engine.calibration import Calibrator, quantized_backbone
from mixaq_mmdet.engine.ratio_sampling import RatioSampler
from mixaq_mmdet.quantization.learned_grid import MIN_STEP, Parameters, Part

ROOT = Path(__file__).resolve().parent.parent
SIZE, CLASSES, BOXES = 256, 10, 6
LIMITS = {'time': 1.5, 'memory': 1.4}
PATCHED = 'mixaq_mmdet.quantization.quantizers.learned.learned_fake_quantize'


def naive(x: Tensor, parts: Sequence[Part], parameters: Sequence[Parameters], out: Tensor | None = None) -> Tensor:
    """``learned_fake_quantize`` as a composition of torch operations."""
    pieces = []
    for part, (step, before, after) in zip(parts, parameters, strict=True):
        step = step.clamp(min=MIN_STEP)
        step = step * part.gradient_scale + (step * (1 - part.gradient_scale)).detach()
        piece = x[part.start : part.stop]
        scaled = ((piece if before is None else piece + before) / step).clamp(part.lowest, part.highest)
        values = (scaled + (scaled.round() - scaled).detach()) * step
        pieces.append(values if after is None else values + after)
    return torch.cat(pieces)


def torch_operation(
    x: Tensor, parts: Sequence[Part], parameters: Sequence[Parameters], out: Tensor | None = None
) -> Tensor:
    """torch's learnable fake-quantize: the mean step of each part, no offsets."""
    pieces = []
    for part, (step, _, _) in zip(parts, parameters, strict=True):
        scale = step.mean().view(1)
        piece = x[part.start : part.stop]
        zero = torch.zeros_like(scale)
        pieces.append(
            torch._fake_quantize_learnable_per_tensor_affine(
                piece, scale, zero, part.lowest, part.highest, part.gradient_scale
            )
            if len(piece)
            else piece + 0 * scale
        )
    return torch.cat(pieces)


ARMS: dict[str, Callable[..., Tensor] | None] = {'stock': None, 'ours': None, 'naive': naive, 'torch': torch_operation}


def make_step(arm: str, batch: int) -> Callable[[], None]:
    """A training step: new ratios, forward, losses, backward, gradients dropped."""
    init_default_scope('mmdet')
    name = 'float' if arm == 'stock' else 'qat-w4a4'
    cfg = Config.fromfile(ROOT / f'configs/mini/mask-rcnn_swin-mini_{name}.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    backbone = quantized_backbone(model)
    sampler = None
    if backbone is not None:
        noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        Calibrator(backbone).run([noise])
        sampler = RatioSampler()
    model.train()
    shapes = [(3, SIZE, SIZE)] * batch
    inputs = demo_mm_inputs(
        batch, image_shapes=shapes, num_items=[BOXES] * batch, num_classes=CLASSES, with_mask=True, use_box_type=True
    )
    data = model.data_preprocessor(inputs, True)
    draws = iter(range(10**9))

    def step() -> None:
        if sampler is not None:
            backbone.sample_ratios(*sampler.draw(backbone.num_pairs, next(draws)))
        replaced = patch(PATCHED, ARMS[arm]) if ARMS[arm] is not None else nullcontext()
        with replaced:
            losses, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
            losses.backward()
        model.zero_grad(set_to_none=True)

    return step


def peak_in_own_process(arm: str, batch: int) -> int:
    """Bytes by which two steps of an arm raise memory."""
    command = [sys.executable, __file__, '--peak-of', arm, '--batch', str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def measure(batch: int, draws: int, clock: str) -> dict[str, Any]:
    """Mean time and peak memory of each arm relative to stock."""
    seconds = alternate({arm: make_step(arm, batch) for arm in ARMS}, draws, clock=clock)
    peaks = {arm: peak_in_own_process(arm, batch) for arm in ARMS}
    rows = {}
    for arm in ARMS:
        relative = [a / b for a, b in zip(seconds[arm], seconds['stock'], strict=True)]
        rows[arm] = {'time': statistics.mean(relative), 'memory': peaks[arm] / peaks['stock']}
    return {'batch': batch, 'draws': draws, 'clock': clock, **describe_device(), 'relative to stock': rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='two images, three draws')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--draws', type=int, default=50)
    parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--peak-of', choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        step = make_step(options.peak_of, options.batch)
        print(peak_above_start(lambda: [step(), step()]))
        return
    batch, draws = (2, 3) if options.quick else (options.batch, options.draws)
    found = measure(batch, draws, options.clock)
    print(json.dumps(found, indent=1))
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1) + '\n')
    for what, limit in LIMITS.items():
        value = found['relative to stock']['ours'][what]
        print(f'{what}: {value:.2f} of the stock step, limit {limit}: {"holds" if value <= limit else "MISSED"}')


if __name__ == '__main__':
    main()
