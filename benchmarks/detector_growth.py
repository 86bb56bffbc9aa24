"""How the gain of a whole detector on integers depends on its work, and images a second with one and two processes.

    python benchmarks/detector_growth.py [--rounds 5] [--threads 2] [--json docs/results/detector_growth.json]

The detectors are those of ``deploy_detector.py``: stock mmdet in float32 and the same on integers. Of proposals,
detections and sizes one changes while the others stay at the main case; the numbers of proposals and detections that
really came out are written beside the times. Then two threads serve JPEG files: as one process with two threads, and as
two processes with one thread each. Rounds interleave, and ratios are medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from deploy_detector import STOCK, WHOLE, detectors, image_file, sample_of
from mmdet.apis import inference_detector
from mmengine.registry import DefaultScope, init_default_scope
from timing import alternate, describe_device, ratios

import mixaq_mmdet  # noqa: F401  (workers load whole models)
from mixaq_mmdet.reporting.files import write_whole

SIZE = (800, 1216)
PROPOSALS, DETECTIONS = 1000, 100
GROWTH = {
    'proposals': (100, 300, 1000, 2000),
    'detections': (10, 100, 300),
    'size': ((480, 640), (640, 960), (800, 1216), (800, 1344)),
}


def set_limits(model: Any, proposals: int, detections: int) -> None:
    """Let a two-stage detector keep so many of both."""
    model.rpn_head.test_cfg.update(nms_pre=max(proposals, 1000), max_per_img=proposals)
    model.roi_head.test_cfg.max_per_img = detections


def case(models: dict[str, Any], rounds: int, proposals: int, detections: int, size: tuple[int, int]) -> dict[str, Any]:
    """Both detectors on one padded image."""
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    for model in models.values():
        set_limits(model, proposals, detections)
    works = {
        name: lambda model=model: model(images, [sample_of(size)], mode='predict') for name, model in models.items()
    }
    features = models[WHOLE].extract_feat(images)
    found = models[WHOLE].rpn_head.predict(features, [sample_of(size)], rescale=False)[0]
    kept = len(works[WHOLE]()[0].pred_instances)
    seconds = alternate(works, rounds)
    row = {'proposals': len(found), 'detections': kept, 'size': list(size), 'seconds': seconds}
    return {**row, 'stock / integers': ratios(seconds, WHOLE)[STOCK]}


def growth(models: dict[str, Any], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """One row for each value, by what changes."""
    usual = {'proposals': PROPOSALS, 'detections': DETECTIONS, 'size': SIZE}
    found: dict[str, list[dict[str, Any]]] = {}
    for what, values in GROWTH.items():
        found[what] = []
        for value in values:
            row = case(models, rounds, **{**usual, what: value})
            found[what].append(row)
            gain = row['stock / integers']
            print(
                f'{what} {value}: {gain["median"]:.2f}x ({gain["least"]:.2f} .. {gain["most"]:.2f}), '
                f'{row["proposals"]} proposals, {row["detections"]} detections',
                flush=True,
            )
    return found


_models: dict[str, Any] = {}


def load(files: dict[str, str], threads: int) -> None:
    """Make this process a worker."""
    init_default_scope('mmdet')
    torch.set_num_threads(threads)
    for name, path in files.items():
        _models[name] = torch.load(path, weights_only=False)


def answer(name: str, image: str, count: int) -> int:
    """The worker's share of the images."""
    for _ in range(count):
        inference_detector(_models[name], image)
    return count


class Workers:
    """Processes that share ``threads`` threads."""

    def __init__(self, files: dict[str, str], processes: int, threads: int) -> None:
        context = multiprocessing.get_context('spawn')
        share = max(threads // processes, 1)
        self.pools = [ProcessPoolExecutor(1, context, load, (files, share)) for _ in range(processes)]

    def rate(self, name: str, image: str, count: int) -> float:
        """Images a second while every process answers ``count``."""
        start = time.perf_counter()
        answers = [pool.submit(answer, name, image, count) for pool in self.pools]
        return sum(one.result() for one in answers) / (time.perf_counter() - start)

    def close(self) -> None:
        """End the processes."""
        for pool in self.pools:
            pool.shutdown()


def throughput(
    models: dict[str, Any], folder: Path, rounds: int, threads: int, processes: Sequence[int] = (1, 2), count: int = 3
) -> list[dict[str, Any]]:
    """Images a second from a JPEG file to masks, by detector and number of processes."""
    files = {name: str(folder / f'{index}.pth') for index, name in enumerate(models)}
    for name, model in models.items():
        set_limits(model, PROPOSALS, DETECTIONS)
        torch.save(model, files[name])
    image = str(image_file(SIZE, folder))
    groups = {number: Workers(files, number, threads) for number in processes}
    rates: dict[tuple[str, int], list[float]] = {(name, number): [] for number in processes for name in models}
    for number in range(rounds + 1):
        for (name, group), found in rates.items():
            rate = groups[group].rate(name, image, count if number else 1)
            if number:  # the round before warms up
                found.append(rate)
    for workers in groups.values():
        workers.close()
    rows = []
    for (name, group), found in rates.items():
        gain = statistics.median(a / b for a, b in zip(found, rates[STOCK, group], strict=True))
        rows.append({'detector': name, 'processes': group, 'images per second': found, 'of stock': gain})
        print(f'{name}, {group} processes: {gain:.2f}x stock with as many', flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='of a float two-stage detector with a Swin backbone')
    parser.add_argument('--weights', help='its checkpoint; random weights without')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    models, _ = detectors(options.config, options.weights, SIZE, quick=True)
    found: dict[str, Any] = describe_device()
    scope = DefaultScope.overwrite_default_scope('mmdet')
    with scope, torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        found['throughput'] = throughput(models, Path(folder), options.rounds, options.threads)
        found['growth'] = growth(models, options.rounds)
    if options.json:
        write_whole(options.json, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
