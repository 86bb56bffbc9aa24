"""Convert a Swin checkpoint of any dialect into one that mmdet 3.x and TwoBranchSwin load, and prove that it fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from ..models.checkpoint_dialects import PREFIX, StateDict, translate
from ..models.checkpoint_geometry import infer_backbone_cfg
from ..registry import MODELS
from .checkpoint_files import dataset_meta, pick_weights, read_checkpoint, write_checkpoint

MAX_MISSING = 0.01
_CLASSIFIER_PARTS = {'backbone', 'head'}


@dataclass(frozen=True)
class Conversion:
    """What was converted: for people to read, and for callers to check.

    Attributes:
        dialect: how the source names its weights.
        weights: the place inside the source that they were taken from.
        backbone: the SwinTransformer arguments they were trained with.
        written: number of tensors in the result.
        missing: float tensors of the target that the source lacks (at most 1 % of those compared).
        fresh: parts of the target that a backbone or classifier checkpoint cannot fill.
        dropped: source tensors that the target has no place for.
    """

    dialect: str
    weights: str
    backbone: dict[str, Any]
    written: int
    missing: list[str]
    fresh: list[str]
    dropped: list[str]


def convert_checkpoint(
    src: str | Path, dst: str | Path, config: str | Path | None = None, ema: bool = False
) -> Conversion:
    """Write the weights of ``src`` to ``dst`` in mmdet 3.x names, without optimizer state.

    Args:
        src: a checkpoint in any dialect of ``models/checkpoint_dialects.py``.
        dst: the file to write; never the source itself.
        config: a config whose model the result must fit; without one only the backbone is compared, with a
            TwoBranchSwin of the geometry that the tensors show.
        ema: take the averaged weights.
    """
    if Path(src).resolve() == Path(dst).resolve():
        raise ValueError(f'DST={str(dst)!r} is SRC itself; write to another file')
    checkpoint = read_checkpoint(src)
    weights, place = pick_weights(checkpoint, ema)
    state_dict, dialect = translate(weights)
    backbone = infer_backbone_cfg(state_dict)
    missing: list[str] = []
    fresh: list[str] = []
    dropped: list[str] = []
    if config is None:
        expected = MODELS.build(dict(type='TwoBranchSwin', **backbone))
        own = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
        missing = [PREFIX + key for key in missing_tensors(own, expected, 'the TwoBranchSwin of its geometry')]
    else:
        model = build_model(config)
        known = model.state_dict()
        dropped = [key for key in state_dict if key not in known]
        state_dict = {key: value for key, value in state_dict.items() if key in known}
        parts = _parts_to_compare(state_dict, dropped, known)
        fresh = sorted({key.split('.')[0] for key in known} - parts)
        missing = missing_tensors(state_dict, model, str(config), parts)
    meta = dict(converted_from=dialect.name, dataset_meta=dataset_meta(checkpoint))
    if not meta['dataset_meta']:
        del meta['dataset_meta']
    write_checkpoint(dict(meta=meta, state_dict=state_dict), dst)
    return Conversion(dialect.name, place, backbone, len(state_dict), missing, fresh, dropped)


def build_model(config: str | Path) -> nn.Module:
    """Build the model of a config file without initialising its weights, so that nothing is downloaded."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return MODELS.build(cfg.model)


def missing_tensors(state_dict: StateDict, model: nn.Module, target: str, parts: set[str] | None = None) -> list[str]:
    """Load ``state_dict`` into ``model`` and return the float tensors that it lacked.

    A size mismatch, or more than 1 % of the float tensors missing, is a ValueError that lists them.

    Args:
        target: what ``model`` was built from, for the messages.
        parts: the top-level modules that ``state_dict`` is expected to fill; all by default.
    """
    expected = model.state_dict()
    mismatched = [
        f'{key}: {tuple(value.shape)} in SRC, {tuple(expected[key].shape)} in the model'
        for key, value in state_dict.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if mismatched:
        raise ValueError(
            f'SRC does not fit {target}: {len(mismatched)} tensors differ in size. Convert with the config it was '
            'trained with, and edit num_classes and the like afterwards:\n  ' + '\n  '.join(mismatched)
        )
    # Loading, rather than a comparison of names, lets a model fill from stock weights what only it has.
    unfilled = model.load_state_dict(state_dict, strict=False).missing_keys
    compared = [key for key, value in expected.items() if value.is_floating_point()]
    if parts is not None:
        compared = [key for key in compared if key.split('.')[0] in parts]
    missing = [key for key in unfilled if key in set(compared)]
    if len(missing) > MAX_MISSING * len(compared):
        raise ValueError(
            f'SRC does not fit {target}: {len(missing)} of {len(compared)} float tensors are missing, '
            f'{len(missing) / len(compared):.1%} where at most {MAX_MISSING:.0%} may be:\n  ' + '\n  '.join(missing)
        )
    return missing


def _parts_to_compare(state_dict: StateDict, dropped: list[str], known: StateDict) -> set[str]:
    """The top-level modules a source answers for: all of a detector's, only the shared ones of a classifier's."""
    parts = {key.split('.')[0] for key in known}
    offered = {key.split('.')[0] for key in [*state_dict, *dropped]}
    return parts & offered if offered <= _CLASSIFIER_PARTS else parts
