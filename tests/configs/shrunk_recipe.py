"""Shrink a shipped recipe by a config merge: its classes, structure and losses stay, widths and depths become tiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mixaq_mmdet.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.name for path in (ROOT / 'configs/mixaq').glob('*.py'))
FLOAT_RECIPES = [name for name in RECIPES if name.endswith('_float.py')]

# One block in the last stage: an odd depth belongs to the smallest model that shows everything.
BACKBONE = dict(embed_dims=8, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), init_cfg=None)
NUM_PAIRS = 4
STAGE_WIDTHS = tuple(8 * 2**stage for stage in range(4))
_WIDTHS = {256: 16, 1024: 32, 2048: 32, 128: 8}
_WIDTH_KEYS = (
    'in_channels', 'out_channels', 'feat_channels', 'conv_out_channels', 'fc_out_channels', 'embed_dims',
    'feedforward_channels', 'num_feats',
)  # fmt: skip
_COUNTS = dict(
    num_layers=2, num_queries=12, num_points=64, num_heads=4, num_groups=4, num_convs=1, stacked_convs=1,
    num_shared_convs=1, num=16, nms_pre=50, max_per_img=10,
)  # fmt: skip


def shrunk_recipe(name: str) -> Config:
    """The recipe ``configs/mixaq/<name>`` with a tiny model."""
    cfg = Config.fromfile(ROOT / 'configs/mixaq' / name)
    stages = cfg.model.backbone.out_indices
    cfg.merge_from_dict({'model.backbone': BACKBONE})
    ratios = cfg.model.backbone.get('low_ratios')
    if isinstance(ratios, list):
        cfg.model.backbone.low_ratios = ratios[:NUM_PAIRS]
    for part in ('neck', 'panoptic_head'):
        if part in cfg.model:
            cfg.model[part].in_channels = [STAGE_WIDTHS[stage] for stage in stages]
    # mmdet's DINO decoder encodes coordinates in 4 x 128 channels, whatever its width
    widths = {2048: 32} if cfg.model.type == 'DINO' else _WIDTHS
    for part, value in cfg.model.items():
        if part != 'backbone':
            _shrink(value, widths)
    cfg.model.data_preprocessor.pop('batch_augments', None)  # pads every batch to the training crop of 1024 pixels
    return cfg


def build(cfg: Config) -> nn.Module:
    """The recipe's model with initialised weights (nothing is downloaded: ``init_cfg`` was removed above)."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def batch_of(cfg: Config, images: int = 2) -> dict[str, Any]:
    """One or two images of different sizes with boxes, masks and, for panoptic models, a semantic map."""
    panoptic = 'panoptic_head' in cfg.model
    num_classes = cfg.model.panoptic_head.num_things_classes if panoptic else 80
    torch.manual_seed(0)
    return demo_mm_inputs(
        images, image_shapes=[(3, 96, 128), (3, 113, 90)][:images], num_items=[3, 1][:images], num_classes=num_classes,
        with_mask=True, with_semantic=panoptic,
    )  # fmt: skip


def _shrink(node: Any, widths: dict[int, int]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, int) and not isinstance(value, bool):
                if key in _WIDTH_KEYS:
                    node[key] = widths.get(value, value)
                elif key in _COUNTS:
                    node[key] = min(value, _COUNTS[key])
            else:
                _shrink(value, widths)
    elif isinstance(node, (list, tuple)):
        for item in node:
            _shrink(item, widths)
