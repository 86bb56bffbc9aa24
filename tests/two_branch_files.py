"""Runnable config files of a tiny Mask R-CNN on TwoBranchSwin, with checkpoints of random weights beside them."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from tiny_detector import CLASSES, tiny_config

from mixaq_mmdet.quantization import Quantizer
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


def write_quantized_files(coco: Path, folder: Path, **backbone) -> tuple[str, str]:
    """Write ``config.py`` and ``epoch_1.pth`` to ``folder``: two low bits in half the windows, every range [-4, 4]."""
    quant = dict(method='MinMax', w_bits=8, a_bits=8, low_a_bits=2)
    cfg = tiny_config(coco, folder)
    cfg.model.backbone.update(type='TwoBranchSwin', **{'quant': quant, 'low_ratios': 0.5, **backbone})
    del cfg.model.backbone['convert_weights']
    cfg.dump(folder / 'config.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.set_range(torch.full(module.shape, -4.0), torch.full(module.shape, 4.0))
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'epoch_1.pth')
    return str(folder / 'config.py'), str(folder / 'epoch_1.pth')
