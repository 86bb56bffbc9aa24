"""Makes a whole set: pictures in worker processes, annotations here, the manifest last."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2

from .corruptions import corrupt
from .files import (
    MANIFEST,
    UNFINISHED,
    annotation,
    coco_document,
    image_name,
    picture_digest,
    read_picture,
    write_json,
    write_manifest,
    write_picture,
)
from .plan import SPLITS, TWINS, Plan, Split, planned_splits, twin_names, twin_stream
from .scenes import draw_scene
from .styles import STYLES

CHUNK = 16
Progress = Callable[[str, int], None]


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def single_thread() -> None:
    """One process per core: OpenCV's own threads would only compete."""
    cv2.setNumThreads(1)


def draw_pictures(folder: Path, split: Split, seed: int, indices: range) -> list[tuple[str, list[dict]]]:
    """Draw and save some pictures of a split: (digest, annotations) of each."""
    made = []
    for index in indices:
        scene = draw_scene(split.stream(seed, index), STYLES[split.style], split.height, split.width)
        write_picture(folder / image_name(index + 1), scene.pixels)
        made.append((picture_digest(scene.pixels), [annotation(number, mask) for number, mask in scene.objects]))
    return made


def corrupt_pictures(
    source: Path, folder: Path, kind: str, severity: int, seed: int, indices: range
) -> list[tuple[str, list[dict]]]:
    """Save corrupted copies of some clean pictures: (digest, no annotations) of each."""
    made = []
    for index in indices:
        clean = read_picture(source / image_name(index + 1))
        pixels = corrupt(twin_stream(seed, kind, severity, index), clean, kind, severity)
        write_picture(folder / image_name(index + 1), pixels)
        made.append((picture_digest(pixels), []))
    return made


@contextmanager
def chunk_runner(workers: int) -> Iterator[Callable]:
    """A function run(task, count, *arguments) that yields results per chunk, in order."""
    if workers == 1:
        single_thread()
        yield lambda task, count, *arguments: (task(*arguments, indices) for indices in chunks(count))
        return
    # Spawned workers inherit no threads, locks or random state from the caller.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(workers, mp_context=context, initializer=single_thread) as pool:

        def run(task: Callable, count: int, *arguments: object) -> Iterator:
            waiting = [pool.submit(task, *arguments, indices) for indices in chunks(count)]
            return (future.result() for future in waiting)

        try:
            yield run
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def chunks(count: int) -> list[range]:
    return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def clear(folder: Path, overwrite: bool) -> None:
    """Make room for a set. Only what a set consists of is removed, and only where a set was made before."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'--out {folder} is a file: name a folder')
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(f'--out {folder} is not empty: name an empty folder or add --overwrite')
    if not any((folder / mark).is_file() for mark in (MANIFEST, UNFINISHED)):
        raise ValueError(f'--out {folder} holds other files than a mini-COCO set: name an empty folder')
    (folder / UNFINISHED).touch()
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in ('annotations', *SPLITS, TWINS):
        shutil.rmtree(folder / name, ignore_errors=True)


def make_set(folder: Path, plan: Plan, workers: int, overwrite: bool, progress: Progress) -> None:
    """Write the whole set; a folder without a manifest is an unfinished one."""
    clear(folder, overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).touch()
    digests: dict[str, str] = {}
    with chunk_runner(workers) as run:
        for split in planned_splits(plan):
            document = make_split(folder, plan, split, run, digests, progress)
            if split.name == 'val':
                clean = document
        for kind, severity in twin_names(plan):
            make_twin(folder, plan, kind, severity, clean, run, digests, progress)
    write_manifest(folder, digests)
    (folder / UNFINISHED).unlink()


def make_split(
    folder: Path, plan: Plan, split: Split, run: Callable, digests: dict[str, str], progress: Progress
) -> dict:
    """One split: pictures, then its annotations; returns the COCO document."""
    for name in (split.name, 'annotations'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    made: list[tuple[str, list[dict]]] = []
    for part in run(draw_pictures, split.count, folder / split.name, split, plan.seed):
        made += part
        progress(split.name, len(part))
    images = [
        {'id': number, 'file_name': image_name(number), 'height': split.height, 'width': split.width}
        for number in range(1, split.count + 1)
    ]
    for image, (digest, _) in zip(images, made, strict=True):
        digests[f'{split.name}/{image["file_name"]}'] = digest
    info = {'description': f'mini-COCO {split.name}', 'version': '1.0', 'style': split.style, 'seed': plan.seed}
    document = coco_document(info, images, [found for _, found in made])
    name = f'annotations/instances_{split.name}.json'
    digests[name] = write_json(folder / name, document)
    return document


def make_twin(
    folder: Path,
    plan: Plan,
    kind: str,
    severity: int,
    clean: dict,
    run: Callable,
    digests: dict[str, str],
    progress: Progress,
) -> None:
    """A corrupted val laid out like a set of its own, so that changing data_root alone selects it."""
    name = f'{TWINS}/{kind}-{severity}'
    for part in ('val', 'annotations'):
        (folder / name / part).mkdir(parents=True, exist_ok=True)
    number = 0
    for part in run(corrupt_pictures, plan.val, folder / 'val', folder / name / 'val', kind, severity, plan.seed):
        for digest, _ in part:
            number += 1
            digests[f'{name}/val/{image_name(number)}'] = digest
        progress(name, len(part))
    info = {**clean['info'], 'description': f'mini-COCO val, {kind} of severity {severity}'}
    path = f'{name}/annotations/instances_val.json'
    digests[path] = write_json(folder / path, {**clean, 'info': info})
