"""Convert a Swin checkpoint of any dialect into one that mmdet 3.x and TwoBranchSwin load, and prove that it fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.registry import init_default_scope
from torch import nn

from mixaq_mmdet.models.checkpoint_dialects import PREFIX, StateDict, is_stock_name, translate
from mixaq_mmdet.models.checkpoint_geometry import infer_backbone_cfg
from mixaq_mmdet.registry import MODELS

from ..damaged_files import check_output, read_config
from .files import dataset_meta, pick_weights, read_checkpoint, write_checkpoint

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
    check_output(dst, 'DST')
    dropped: list[str] = []
    if config is None:
        swin = MODELS.build(dict(type='TwoBranchSwin', **backbone)).state_dict()
        target, expected = 'the TwoBranchSwin of its geometry', {PREFIX + key: value for key, value in swin.items()}
    else:
        target, expected = str(config), build_model(config).state_dict()
        dropped = [key for key in state_dict if key not in expected]
    parts, fresh = _parts_to_fill(_parts(state_dict), _parts(expected))
    missing = missing_tensors(state_dict, expected, target, parts)
    state_dict = {key: value for key, value in state_dict.items() if key not in set(dropped)}
    meta = dict(converted_from=dialect.name, dataset_meta=dataset_meta(checkpoint))
    if not meta['dataset_meta']:
        del meta['dataset_meta']
    write_checkpoint(dict(meta=meta, state_dict=state_dict), dst)
    return Conversion(dialect.name, place, backbone, len(state_dict), missing, sorted(fresh), dropped)


def build_model(config: str | Path) -> nn.Module:
    """Build the model of a config file without initialising its weights, so that nothing is downloaded."""
    cfg = read_config(config, '--config')
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return MODELS.build(cfg.model)


def missing_tensors(state_dict: StateDict, expected: StateDict, target: str, parts: set[str]) -> list[str]:
    """Return the float tensors that ``state_dict`` lacks of those a model is made of.

    A size mismatch, or more than 1 % of the float tensors missing, is a ValueError that lists them.

    Args:
        expected: the state dict of the model.
        target: what the model was built from, for the messages.
        parts: the top-level modules that ``state_dict`` has to fill.
    """
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
    # What only TwoBranchSwin has, it fills from stock weights when it loads.
    compared = [
        key
        for key, value in expected.items()
        if value.is_floating_point() and is_stock_name(key) and key.split('.')[0] in parts
    ]
    missing = [key for key in compared if key not in state_dict]
    if len(missing) > MAX_MISSING * len(compared):
        raise ValueError(
            f'SRC does not fit {target}: {len(missing)} of {len(compared)} float tensors are missing, '
            f'{len(missing) / len(compared):.1%} where at most {MAX_MISSING:.0%} may be:\n  ' + '\n  '.join(missing)
        )
    return missing


def _parts(state_dict: StateDict) -> set[str]:
    return {key.split('.')[0] for key in state_dict}


def _parts_to_fill(offered: set[str], wanted: set[str]) -> tuple[set[str], set[str]]:
    """Split a model's top-level modules into those a source must fill and those that start untrained.

    A detector answers for all of them, a backbone or classifier for what it shares.
    """
    filled = wanted & offered if offered <= _CLASSIFIER_PARTS else wanted
    return filled, wanted - filled
