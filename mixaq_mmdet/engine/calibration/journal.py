"""Finished blocks of a running calibration, kept on disk, so that a killed run goes on behind the last one.

One file per block, written whole or not at all. A key over configs, images and weights guards them: files of another
calibration are dropped. A block's numbers depend on its inputs and seeds only, which the finished blocks before
it reproduce; so a resumed calibration ends with the numbers of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import print_log
from torch import nn

from mixaq_mmdet.reporting.files import whole_file, write_whole

from ..damaged_files import TORN


class BlockJournal:
    """The finished blocks of one calibration.

    Args:
        folder: where they lie; all ranks read it, the first one writes.
        key: from :func:`calibration_key`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        if is_main_process():
            key_file = folder / 'key.txt'
            if not key_file.exists() or key_file.read_bytes() != key.encode():
                self.clear()
                write_whole(key_file, key)
        found = [{path.name for path in folder.glob('*.pt')}]
        broadcast_object_list(found)  # once, before any work: every rank restores the same blocks
        self._finished = found[0]

    def __len__(self) -> int:
        return len(self._finished)

    def restore(self, number: int, block: nn.Module) -> dict[str, float] | None:
        """Load a finished block's state; returns its dB by quantizer, or None if it is not finished or unreadable."""
        path = self._path(number)
        if path.name not in self._finished:
            return None
        try:
            saved = torch.load(path, map_location='cpu', weights_only=True)
            state, noise = saved['state'], saved['noise']
        except TORN as error:
            print_log(
                f'calibration: {path} cannot be read ({type(error).__name__}); its block is calibrated again', 'current'
            )
            return None
        block.load_state_dict(state)
        return noise

    def record(self, number: int, block: nn.Module, noise: dict[str, float]) -> None:
        """Keep a block that has just been finished."""
        if is_main_process():
            with whole_file(self._path(number)) as temporary:
                torch.save({'state': block.state_dict(), 'noise': noise}, temporary)

    def clear(self) -> None:
        """Drop everything: the calibration is saved elsewhere."""
        if is_main_process():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f'{number:03d}.pt'


def calibration_key(model: nn.Module, configs: Sequence[dict[str, Any]], images: Sequence[Any], seed: int) -> str:
    """What decides a calibration, as a digest: weights before it, configs, images and seed."""
    text = json.dumps([configs, [str(image) for image in images], seed], default=str, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
