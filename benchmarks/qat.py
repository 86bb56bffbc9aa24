"""A training step with learned quantizers and sampled ratios against the stock float step of the same detector.

    python benchmarks/qat.py [--quick] [--batch 8] [--draws 50] [--clock wall] [--json docs/results/qat_cost.json]

The small Mask R-CNN at its training size, the same images and boxes in every arm: forward, losses, backward. Beside our
quantizers stand the same quantizers composed of torch operations ('naive') and torch's own learnable operation, which
knows one step per tensor and no offsets; they run in every fifth round. Times alternate in one process, a new draw of
ratios each round, and the mean of per-round ratios counts; each peak of memory is taken in a process of its own. With
``--json`` every round is kept beside that file, and a run that was stopped goes on. The last lines are the verdicts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from timing import describe_device, peak_above_start
from torch import Tensor

from mixaq_mmdet.analysis.timing import timed
from mixaq_mmdet.engine.calibration import Calibrator, quantized_backbone
from mixaq_mmdet.engine.ratio_sampling import RatioSampler
from mixaq_mmdet.quantization.learned_grid import MIN_STEP, Parameters, Part
from mixaq_mmdet.reporting.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
SIZE, CLASSES, BOXES = 256, 10, 6
LIMITS = {'time': 1.5, 'memory': 1.4}
PATCHED = 'mixaq_mmdet.quantization.quantizers.learned'


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
RIVALS = ('naive', 'torch')
RIVALS_EVERY = 5
Steps = Mapping[str, Callable[[int], None]]


def make_step(arm: str, batch: int) -> Callable[[int], None]:
    """A training step with the ratios of a draw: forward, losses, backward, gradients dropped."""
    init_default_scope('mmdet')
    name = 'float' if arm == 'stock' else 'qat-w4a4'
    cfg = Config.fromfile(ROOT / f'configs/mini/mask-rcnn_swin-mini_{name}.py')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    backbone = quantized_backbone(model)
    sampler = RatioSampler()
    if backbone is not None:
        noise = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        Calibrator(backbone).run([noise])
    model.train()
    shapes = [(3, SIZE, SIZE)] * batch
    inputs = demo_mm_inputs(
        batch, image_shapes=shapes, num_items=[BOXES] * batch, num_classes=CLASSES, with_mask=True, use_box_type=True
    )
    data = model.data_preprocessor(inputs, True)

    def step(draw: int) -> None:
        if backbone is not None:
            backbone.sample_ratios(*sampler.draw(backbone.num_pairs, draw))
        with operations_of(arm):
            losses, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
            losses.backward()
        model.zero_grad(set_to_none=True)

    return step


def operations_of(arm: str) -> AbstractContextManager[Any]:
    """Replace our operations by those of a rival."""
    quantize = ARMS[arm]
    if quantize is None:
        return nullcontext()

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *grid: Any) -> Tensor:
        return F.linear(quantize(x, *grid), weight, bias)

    return patch.multiple(PATCHED, learned_fake_quantize=quantize, learned_linear=linear)


class Record:
    """Seconds by draw and arm, and peaks by arm; kept in a file, if there is one, after every addition.

    Args:
        path: of the file; one with other settings is begun anew.
        settings: what the figures depend on.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {'settings': dict(settings), 'rounds': [], 'peaks': {}}
        if path is not None and path.is_file():
            found = json.loads(path.read_text())
            if found['settings'] == self.content['settings']:
                self.content = found

    @property
    def rounds(self) -> list[dict[str, float]]:
        """Seconds of each arm that ran, one entry per draw."""
        return self.content['rounds']

    @property
    def peaks(self) -> dict[str, int]:
        """Bytes by arm."""
        return self.content['peaks']

    def keep(self) -> None:
        """Write what there is."""
        if self.path is not None:
            write_whole(self.path, json.dumps(self.content))


def time_rounds(make_steps: Callable[[], Steps], record: Record, draws: int, clock: str) -> None:
    """Time what the record lacks of ``draws`` rounds, after one step of each arm that does not count."""
    if len(record.rounds) >= draws:
        return
    steps = make_steps()
    for step in steps.values():
        step(0)
    for draw in range(len(record.rounds), draws):
        arms = [arm for arm in steps if arm not in RIVALS or draw % RIVALS_EVERY == 0]
        record.rounds.append({arm: timed(partial(steps[arm], draw), clock=clock) for arm in arms})
        record.keep()


def peak_in_own_process(arm: str, batch: int) -> int:
    """Bytes by which two steps of an arm raise memory."""
    command = [sys.executable, __file__, '--peak-of', arm, '--batch', str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def summary(rounds: Sequence[Mapping[str, float]], peaks: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Each arm relative to stock: mean, least and most of per-round times, and peak memory."""
    rows = {}
    for arm in ARMS:
        relative = [seconds[arm] / seconds['stock'] for seconds in rounds if arm in seconds]
        rows[arm] = {
            'time': statistics.mean(relative),
            'least': min(relative),
            'most': max(relative),
            'draws': len(relative),
            'memory': peaks[arm] / peaks['stock'],
        }
    return rows


def measure(batch: int, draws: int, clock: str, path: Path | None) -> dict[str, Any]:
    """All figures; ``path`` is where a stopped run is kept."""
    settings = {'batch': batch, 'draws': draws, 'clock': clock, 'threads': torch.get_num_threads()}
    record = Record(path, settings)
    time_rounds(lambda: {arm: make_step(arm, batch) for arm in ARMS}, record, draws, clock)
    for arm in ARMS:
        if arm not in record.peaks:
            record.peaks[arm] = peak_in_own_process(arm, batch)
            record.keep()
    return {**settings, **describe_device(), 'relative to stock': summary(record.rounds, record.peaks)}


def verdicts(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line per limit."""
    lines = []
    for what, limit in LIMITS.items():
        value = rows['ours'][what]
        lines.append(f'{what}: {value:.2f} of the stock step, limit {limit}: {"holds" if value <= limit else "MISSED"}')
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='two images, three draws')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--draws', type=int, default=50)
    parser.add_argument('--clock', choices=['wall', 'cpu'], default='wall', help='cpu: on a machine others use, too')
    parser.add_argument('--json', type=Path, help='write the figures here')
    parser.add_argument('--peak-of', choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        step = make_step(options.peak_of, options.batch)
        print(peak_above_start(lambda: [step(0), step(1)]))
        return
    batch, draws = (2, 3) if options.quick else (options.batch, options.draws)
    unfinished = options.json and options.json.with_suffix('.unfinished')
    found = measure(batch, draws, options.clock, unfinished)
    print(json.dumps(found, indent=1))
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1) + '\n')
        unfinished.unlink(missing_ok=True)
    print('\n'.join(verdicts(found['relative to stock'])))


if __name__ == '__main__':
    main()
