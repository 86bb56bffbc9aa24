"""A detector in memory: the one way from a config and a checkpoint to a model in eval mode."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from .command_line import check_checkpoint


def every_window_high(cfg: Config) -> Config:
    """A copy of a config without its low and prune ratios."""
    cfg = copy.deepcopy(cfg)
    for name in ('low_ratios', 'prune_ratios'):
        cfg.model.get('backbone', {}).pop(name, None)
    return cfg


def load_detector(
    cfg: Config,
    checkpoint: str | Path,
    device: str = 'cpu',
    field: str = 'checkpoint',
    quant: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The detector of a config with its weights, in eval mode; the config stays as it is.

    Args:
        cfg: of the detector.
        checkpoint: a file or a URL.
        device: where the model goes.
        field: what messages call the checkpoint.
        quant: replaces the backbone's ``quant``; an empty one makes the backbone float.
    """
    from mmdet.apis import init_detector  # brings mmengine's inference with it, which few need

    check_checkpoint(str(checkpoint), field)
    cfg = copy.deepcopy(cfg)
    if quant is not None:
        cfg.model.backbone.pop('quant', None)
        if quant:
            cfg.model.backbone.quant = dict(quant)
    return init_detector(cfg, str(checkpoint), palette='random', device=device)
