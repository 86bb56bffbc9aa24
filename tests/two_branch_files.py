"""A runnable config file of a tiny Mask R-CNN on TwoBranchSwin, with a checkpoint of random weights beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from tiny_detector import CLASSES, tiny_config

from mixaq_mmdet.registry import MODELS


def write_two_branch_files(coco: Path, folder: Path, **backbone) -> tuple[str, str]:
    """Write ``tiny.py`` and ``tiny.pth`` to ``folder``; the config's ``init_cfg`` would fail if it were downloaded."""
    cfg = tiny_config(coco, folder / 'work_dir')
    cfg.model.backbone.update(type='TwoBranchSwin', **backbone)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=[(0, 0, 0)] * len(CLASSES)))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'tiny.pth')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='https://example.invalid/swin.pth')
    cfg.dump(folder / 'tiny.py')
    return str(folder / 'tiny.py'), str(folder / 'tiny.pth')
