"""Calibration inside a Runner: what PTQLoop and CalibrationHook have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from torch.utils.data import DataLoader

from mixaq_mmdet.reporting.files import write_whole

from ..checkpoints.overwriting import SUMMARY_FILE, config_name
from ..detectors import every_window_high
from ..progress import progress
from .calibrator import Calibrator
from .data import calibration_loader, check_draw, image_ids, reading_pipeline
from .effort import EFFORT_FILE, measured
from .journal import BlockJournal, calibration_key
from .parts import asks_for_gradients, uncalibrated
from .summary import as_json, as_table, summarize

JOURNAL_FOLDER = 'calibration_blocks'


def loader_for(runner: Any, train_dataloader: Any, num_images: int, seed: int) -> DataLoader:
    """The calibration loader of a Runner's config."""
    check_draw(num_images, seed)  # what is wrong with them needs no model to be seen
    pipeline = reading_pipeline(runner.cfg, annotated=asks_for_gradients(runner.model))
    return calibration_loader(train_dataloader, pipeline, num_images, seed)


def refuse_averaging(runner: Any) -> None:
    """A ValueError if a hook averages the model: its copy would not be calibrated, but saved and evaluated."""
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            raise ValueError(
                f'custom_hooks has {type(hook).__name__}: it would save and evaluate its own copy of the model, which '
                'no calibration reaches, and there is nothing to average without training; leave it out of '
                'custom_hooks (files that it saved in a training load as they are)'
            )


def calibrate_in_runner(
    runner: Any, loader: DataLoader, seed: int, resumable: bool = False, branches: str = 'all'
) -> BlockJournal | None:
    """Calibrate ``runner.model`` in place; print the table and write it to ``calibration.json`` in the work folder.

    What it took goes beside it, into ``calibration_effort.json``.

    Args:
        runner: the Runner.
        loader: this rank's images.
        seed: by which they were drawn.
        resumable: keep finished blocks in the work folder and go on behind them.
        branches: 'all', or 'low' for the low branch of a calibrated model alone.

    Returns:
        The journal of finished blocks, to be cleared once the model is saved; None if there is none.
    """
    if not runner._has_loaded:
        raise ValueError(
            'calibration needs a trained model, but no checkpoint was loaded; set load_from to a float checkpoint '
            '(and init_cfg=None in the backbone, so that nothing is downloaded)'
        )
    annotated = asks_for_gradients(runner.model)
    calibrator = Calibrator(runner.model, branches=branches, annotated=annotated)
    if branches == 'all' and not uncalibrated(runner.model):
        print_log('calibration: every quantizer is calibrated already, nothing to do', 'current')
        return None
    ids = sorted((image for share in all_gather_object(image_ids(loader)) for image in share), key=str)
    if resumable:
        key = calibration_key(calibrator.model, [*calibrator.configs, _inputs(runner.cfg, annotated)], ids, seed)
        calibrator.journal = BlockJournal(Path(runner.work_dir) / JOURNAL_FOLDER, key)
        if len(calibrator.journal):
            print_log(f'calibration: {len(calibrator.journal)} finished blocks are taken over', 'current')
    images = len(list(loader.sampler))
    with measured(calibrator.model, images) as effort, progress('calibration', calibrator.steps(images)) as tick:
        effort.blocks_taken_over = 0 if calibrator.journal is None else len(calibrator.journal)
        calibrator.tick = tick
        noise = calibrator.run(loader)
    lines = summarize(calibrator.model, noise)
    what = 'the low branch calibrated' if branches == 'low' else 'calibrated'
    print_log(f'{what} on {len(ids)} images (seed {seed}) in {effort}\n{as_table(lines)}', 'current')
    if is_main_process():
        content = {'config': config_name(runner.cfg), 'seed': seed, 'image_ids': ids, 'quantizers': as_json(lines)}
        write_whole(Path(runner.work_dir) / SUMMARY_FILE, json.dumps(content, indent=1))
        write_whole(Path(runner.work_dir) / EFFORT_FILE, json.dumps(effort.as_dict(), indent=1))
    return calibrator.journal


def kept_by_training(cfg: Any) -> str | None:
    """What an interrupted run of ``tools/train.py`` left in its work folder, for who gives the command again."""
    folder = Path(cfg.get('work_dir') or '.')
    if blocks := len(list((folder / JOURNAL_FOLDER).glob('*.pt'))):
        return f'give the same command again: {blocks} blocks are kept'
    if files := sorted(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime):
        return f'give the same command with --resume: it goes on behind {files[-1].name}'
    return None


def _inputs(cfg: Any, annotated: bool = False) -> dict[str, Any]:
    """What blocks see depends on it, beside weights and images: the model's other settings and how images are read."""
    return {
        'model': every_window_high(cfg).model.to_dict(),  # calibration runs ratios of its own
        'pipeline': reading_pipeline(cfg, annotated),
        'dataset': (cfg.get('train_dataloader') or {}).get('dataset'),
    }
