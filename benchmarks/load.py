#!/usr/bin/env python
"""An integer detector under load: threads and processes, images of many sizes, the same answers, memory that stays.

    python benchmarks/load.py --json docs/results/load.json
    python benchmarks/load.py CONFIG CKPT --images 200

Without CONFIG and CKPT (files of ``tools/deploy.py convert``) it makes a Mask R-CNN on the mini Swin with random
weights. Every run gives all images to mmdet's DetInferencer; answers are compared with those of one thread, image by
image, and memory is the resident set of the process.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import describe_device

import mixaq_mmdet  # noqa: F401  (importing registers, and prepares the host)
from mixaq_mmdet.reporting.files import write_whole

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = REPOSITORY / 'configs/mini/mask-rcnn_swin-mini_mixaq-ptq-w8a8-detector.py'
DISTINCT = 40
SETTLED = 0.3  # share of a run after which allocators and caches have what they want
FLAT = 0.05


def images_of(count: int, seed: int = 0, sides: tuple[int, int] = (120, 480)) -> list[np.ndarray]:
    """``count`` images of random sizes: smooth colours with noise, so that detectors find something."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        height, width = generator.integers(*sides, 2)
        rough = generator.integers(0, 255, (height // 24 + 1, width // 24 + 1, 3))
        made.append(rough.repeat(24, 0).repeat(24, 1)[:height, :width].astype(np.uint8))
    return made


def random_detector(folder: Path) -> tuple[str, str]:
    """Config and file of a converted detector with random weights."""
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from mixaq_mmdet import calibrate
    from mixaq_mmdet.deploy.files import convert_detector

    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    model.init_weights()
    calibrate(model, torch.randn(2, 3, 128, 160))
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, folder / 'calibrated.pth')
    path = convert_detector(cfg, str(folder / 'calibrated.pth'), folder / 'integer.pth')
    return str(path), str(folder / 'integer.pth')


class Load:
    """One inferencer, and what it answered first for each of some images.

    Args:
        config: of a converted detector.
        checkpoint: its file.
        images: arrays (H, W, 3), BGR.
    """

    def __init__(self, config: str, checkpoint: str, images: Sequence[np.ndarray]) -> None:
        from mmdet.apis import DetInferencer

        torch.set_num_threads(1)
        self.inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
        self.images = images
        self.answers = [self.answer(index) for index in range(len(images))]

    def answer(self, index: int) -> str:
        """A digest of boxes, scores, labels and masks."""
        result = self.inferencer(self.images[index % len(self.images)], no_save_vis=True, return_datasamples=True)
        found = result['predictions'][0].pred_instances
        digest = hashlib.sha256()
        for name in ('bboxes', 'scores', 'labels', 'masks'):
            if name in found:
                digest.update(torch.as_tensor(found[name]).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def run(self, count: int, threads: int) -> dict[str, Any]:
        """Give ``count`` images to ``threads`` threads."""
        indices = iter(range(count))
        lock, other, resident = threading.Lock(), [], []

        def work() -> None:
            while True:
                with lock:
                    index = next(indices, None)
                    if index is None:
                        return
                    if index % max(count // 100, 1) == 0:
                        resident.append((index, resident_bytes()))
                if self.answer(index) != self.answers[index % len(self.images)]:
                    other.append(index)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - start
        return {
            'threads': threads,
            'images': count,
            'images per second': round(count / seconds, 3),
            'other answers': len(other),
            **growth(resident, count),
        }


def resident_bytes() -> int:
    """Of this process (Linux)."""
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def growth(resident: Sequence[tuple[int, int]], count: int) -> dict[str, Any]:
    """How much memory the last part of a run held above the part where it had settled."""
    settled = [held for index, held in resident if SETTLED * count <= index < 2 * SETTLED * count]
    last = [held for index, held in resident if index >= 0.7 * count]
    if not settled or not last:
        return {'resident MiB': round(resident[-1][1] / 2**20, 1), 'growth': None}
    first, end = statistics.median(settled), statistics.median(last)
    return {'resident MiB': round(end / 2**20, 1), 'growth': round(end / first - 1, 4)}


def _in_a_process(files: tuple[str, str], distinct: int, count: int, send: Any) -> None:
    load = Load(*files, images_of(distinct))
    send.put({**load.run(count, 1), 'answers': load.answers})


def in_processes(files: tuple[str, str], count: int, processes: int) -> tuple[dict[str, Any], list[list[str]]]:
    """Share ``count`` images among processes; their figures together, and the answers of each."""
    context = multiprocessing.get_context('spawn')
    results = context.Queue()
    share = count // processes
    workers = [context.Process(target=_in_a_process, args=(files, DISTINCT, share, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    grown = [row['growth'] for row in found if row['growth'] is not None]
    row = {
        'processes': processes,
        'images': share * processes,
        'images per second': round(sum(row['images per second'] for row in found), 3),
        'other answers': sum(row['other answers'] for row in found),
        'resident MiB': max(row['resident MiB'] for row in found),
        'growth': max(grown) if grown else None,
    }
    return row, [row['answers'] for row in found]


def measure(files: tuple[str, str], count: int, threads: Sequence[int], processes: int) -> dict[str, Any]:
    """Every run, and a verdict."""
    load = Load(*files, images_of(DISTINCT))
    rows = [load.run(count, number) for number in threads]
    if processes:
        row, answers = in_processes(files, count, processes)
        row['other answers'] += sum(a != b for own in answers for a, b in zip(own, load.answers, strict=True))
        rows.append(row)
    same = not any(row['other answers'] for row in rows)
    flat = all(row['growth'] is None or row['growth'] <= FLAT for row in rows)
    return {
        'command': f'python benchmarks/load.py --images {count}',
        'plan': getattr(getattr(load.inferencer.model.backbone, 'plan', None), 'line', ''),
        'rows': rows,
        'same answers': same,
        'memory flat': flat,
        'environment': describe_device(),
    }


def main(argv: list[str] | None = None) -> None:
    """Run, print, write; status 1 where answers differ or memory grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('files', nargs='*', metavar='CONFIG CKPT', help='of a converted detector')
    parser.add_argument('--images', type=int, default=2000, help='images of each run (default: 2000)')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--processes', type=int, default=2, help='0 leaves this run out')
    parser.add_argument('--json', type=Path, metavar='FILE')
    args = parser.parse_args(argv)
    if len(args.files) not in (0, 2):
        parser.error('give CONFIG and CKPT, or neither')
    with tempfile.TemporaryDirectory() as folder:
        files = tuple(args.files) or random_detector(Path(folder))
        found = measure((files[0], files[1]), args.images, args.threads, args.processes)
    for row in found['rows']:
        print('  '.join(f'{name}: {value}' for name, value in row.items()))
    print(found['plan'], f'same answers: {found["same answers"]}, memory flat: {found["memory flat"]}', sep='\n')
    if args.json:
        write_whole(args.json, json.dumps(found, indent=1) + '\n')
    if not (found['same answers'] and found['memory flat']):
        sys.exit(1)


if __name__ == '__main__':
    main()
