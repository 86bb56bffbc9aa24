"""Converted detectors as files: written whole, read without running code, with a config beside them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor

from mixaq_mmdet.engine.checkpoint_files import dataset_meta, write_checkpoint

from .convert import HEADER, convert_backbone
from .integer_swin import CONVERT_ANEW, read_header

PREFIX = 'backbone.'
TRAINING_KEYS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')


def convert_detector(cfg: Config, checkpoint: str, path: Path) -> Path:
    """Convert the backbone of a calibrated detector and write the whole detector.

    Args:
        cfg: config that the checkpoint was calibrated or trained with.
        checkpoint: its file.
        path: where the converted detector goes; its config goes beside it.

    Returns:
        The path of the config, for tools/test.py and init_detector.
    """
    if path.suffix == '.py':
        raise ValueError(f'-o {str(path)!r} would be overwritten by the config; choose another ending, such as .pth')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model_cfg = cfg.model.copy()
    if model_cfg.type == 'QuantDetector':
        raise ValueError(
            'model.type="QuantDetector": neck and heads do not convert; calibrate the backbone alone, with the stock '
            'detector as model.type'
        )
    model = MODELS.build(model_cfg).eval()
    loaded = load_checkpoint(model, checkpoint, map_location='cpu')
    state = {PREFIX + name: value for name, value in convert_backbone(model.backbone).items()}
    heads = {name: value for name, value in model.state_dict().items() if not name.startswith(PREFIX)}
    meta = dataset_meta(loaded)
    write_checkpoint({'meta': {'dataset_meta': meta} if meta else {}, 'state_dict': {**heads, **state}}, path)
    config_path = path.with_suffix('.py')
    integer_config(cfg).dump(str(config_path))
    return config_path


def integer_config(cfg: Config) -> Config:
    """The config of the converted detector: IntegerSwin as backbone, and nothing that trains."""
    cfg = Config(cfg.to_dict())
    backbone = cfg.model.backbone
    backbone.type = 'IntegerSwin'
    backbone.init_cfg = None
    for key in ('quant', 'check_finite', 'pretrained'):
        backbone.pop(key, None)
    for key in TRAINING_KEYS:
        cfg.pop(key, None)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if hook.get('type') not in ('CalibrationHook', 'ExactResumeHook')]
    cfg.load_from, cfg.resume = None, False
    cfg.pop('work_dir', None)
    cfg.custom_imports = dict(imports=['mixaq_mmdet'], allow_failed_imports=False)
    return cfg


def read_detector(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a converted detector.

    Raises:
        ValueError: for a missing, torn or foreign file and one of a later version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{str(path)!r} is not a file; give what tools/deploy.py convert wrote')
    try:
        loaded: Any = torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f'{str(path)!r} is torn or no converted detector; {CONVERT_ANEW}') from error
    state = loaded.get('state_dict') if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f'{str(path)!r} holds no state_dict; {CONVERT_ANEW}')
    read_header({HEADER: state[PREFIX + HEADER]} if PREFIX + HEADER in state else {})
    return state
