"""Converted detectors as files: written whole, read without running code, with a config beside them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from mixaq_mmdet.engine.checkpoints.files import dataset_meta, write_checkpoint
from mixaq_mmdet.engine.damaged_files import check_output
from mixaq_mmdet.reporting.files import write_whole

from .converted import convert_model
from .state import CONVERT_ANEW, HEADER, State, decode_header
from .table import Table

PACKAGE = 'mixaq_mmdet'
PREFIX = 'backbone.'
TRAINING_KEYS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')


def convert_detector(cfg: Config, checkpoint: str, path: Path) -> Path:
    """Convert a calibrated detector and write it.

    Args:
        cfg: config that the checkpoint was calibrated or trained with.
        checkpoint: its file.
        path: where the converted detector goes; its config goes beside it.

    Returns:
        The path of the config, for tools/test.py and init_detector.
    """
    if path.suffix == '.py':
        raise ValueError(f'-o {str(path)!r} would be overwritten by the config; choose another ending, such as .pth')
    for kept, what in ((checkpoint, 'checkpoint'), (cfg.filename, 'config')):
        if kept and Path(kept).expanduser().resolve() in (path.resolve(), path.with_suffix('.py').resolve()):
            raise ValueError(f'-o {str(path)!r} would overwrite the {what} {kept!r}; choose another name or folder')
    for written in (path, path.with_suffix('.py')):
        check_output(written, '-o')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model_cfg = cfg.model.copy()
    model = MODELS.build(model_cfg).eval()
    loaded = load_checkpoint(model, checkpoint, map_location='cpu')
    state = convert_model(model).state_dict()
    meta = dataset_meta(loaded)
    text = integer_config(cfg).pretty_text
    write_checkpoint({'meta': {'dataset_meta': meta} if meta else {}, 'state_dict': state}, path)
    config_path = path.with_suffix('.py')
    write_whole(config_path, text)
    return config_path


def integer_config(cfg: Config) -> Config:
    """The config of the converted detector: IntegerDetector, IntegerSwin as backbone, and nothing that trains."""
    cfg = Config(cfg.to_dict())
    if cfg.get('default_scope', 'mmdet') == 'mmdet' and 'type' in cfg.model:
        base = cfg.model.pop('base', None) if cfg.model.type == 'QuantDetector' else cfg.model.type
        cfg.model.update(type='IntegerDetector', base=base)
        cfg.model.pop('detector_quant', None)
    backbone = cfg.model.backbone
    backbone.type = 'IntegerSwin'
    backbone.init_cfg = None
    for key in ('quant', 'distill', 'check_finite', 'form', 'pretrained'):
        backbone.pop(key, None)
    for key in TRAINING_KEYS:
        cfg.pop(key, None)
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [hook for hook in hooks if hook.get('type') not in ('CalibrationHook', 'ExactResumeHook')]
    cfg.load_from, cfg.resume = None, False
    cfg.pop('work_dir', None)
    cfg.custom_imports = custom_imports(cfg)
    return cfg


def custom_imports(cfg: Config) -> dict[str, Any]:
    """``custom_imports`` of a config with this package among them: what a written config needs to run."""
    own = dict(cfg.get('custom_imports') or {})
    imports = own.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if PACKAGE not in imports:
        imports.append(PACKAGE)
    return {'allow_failed_imports': False, **own, 'imports': imports}


def check_integer_checkpoint(cfg: Config, checkpoint: str) -> None:
    """If ``cfg`` has an integer backbone, a ValueError unless ``checkpoint`` (a file, or a URL) is made for one.

    mmengine would fail inside ``torch.load``, or start to load and then fail, without naming the file.
    """
    model = cfg.get('model', {})
    if (model.get('backbone') or {}).get('type') != 'IntegerSwin' or '://' in checkpoint:
        return
    state = read_detector(checkpoint)
    whole = HEADER in state and bool(decode_header(state[HEADER])['layers'])
    if whole and model.get('type') != 'IntegerDetector':
        raise ValueError(
            f'{checkpoint!r} holds neck and heads as integers, which model.type={model.get("type")!r} cannot read: use '
            'the config beside the file, which has model.type="IntegerDetector"'
        )


def read_detector(path: str | Path) -> State:
    """The state dict of a converted detector.

    Raises:
        ValueError: for a missing, torn, incomplete or foreign file and one of a later version; it names the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f'{str(path)!r} is not a file; give what tools/deploy.py convert wrote')
    try:
        loaded: Any = torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, EOFError, KeyError, pickle.UnpicklingError, ValueError) as error:
        raise ValueError(f'{str(path)!r} is torn or not a converted detector; {CONVERT_ANEW}') from error
    state = loaded.get('state_dict') if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f'{str(path)!r} holds no state_dict; {CONVERT_ANEW}')
    backbone = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    try:
        Table(backbone)
        if HEADER in state:
            Table(state)
    except ValueError as error:
        raise ValueError(f'{str(path)!r}: {error}') from error
    return state
