"""The ways Swin checkpoints name and order their weights, and one translation into mmdet 3.x names.

Pure functions on state dicts; reading files and comparing with a model is ``engine/checkpoints/conversion.py``.

======================  =========================================  ==============================
dialect                 attention weights of the first block       order of merged 2x2 patches
======================  =========================================  ==============================
microsoft               ``layers.0.blocks.0.attn.qkv``             (column, row, channel)
swin-object-detection   ``backbone.layers.0.blocks.0.attn.qkv``    (column, row, channel)
mmpretrain              ``backbone.stages.0.blocks.0.attn.w_msa``  (channel, row, column)
mmdet                   the same, beside a detector's heads        (channel, row, column)
======================  =========================================  ==============================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
Renames = tuple[tuple[str, str], ...]

PREFIX = 'backbone.'
_STOCK_NAME = re.compile(
    r'patch_embed\.(projection|norm)\.|absolute_pos_embed$|norm\d+\.|stages\.\d+\.(downsample\.(norm|reduction)\.|'
    r'blocks\.\d+\.(norm[12]\.|ffn\.layers\.(0\.0|1)\.|attn\.w_msa\.(qkv\.|proj\.|relative_position_)))'
)
_LOW_NORM = re.compile(r'\.norm[12]_low\.')
_SWIN_RENAMES: Renames = (
    (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
    (r'^layers\.', 'stages.'),
    (r'\.attn\.', '.attn.w_msa.'),
    (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
    (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
)
# mmdet 2.x numbers the attentions of a transformer layer in the order of their use; 3.x names them.
_MMDET_2_RENAMES: Renames = (
    (r'(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'(transformer_decoder\.layers\.\d+)\.attentions\.0\.', r'\1.cross_attn.'),
    (r'(transformer_decoder\.layers\.\d+)\.attentions\.1\.', r'\1.self_attn.'),
    (r'((?:pixel_decoder\.encoder|transformer_decoder)\.layers\.\d+)\.ffns\.0\.', r'\1.ffn.'),
)


@dataclass(frozen=True)
class Dialect:
    """One way of naming: how it is recognised, and how it becomes mmdet 3.x names.

    Attributes:
        recognises: tells from the key names whether a state dict is written in this dialect.
        translate: renames and reorders; the backbone ends up under ``backbone.``.
    """

    name: str
    recognises: Callable[[Collection[str]], bool]
    translate: Callable[[StateDict], StateDict]


def detect_dialect(state_dict: StateDict) -> Dialect:
    """Return the one dialect that recognises the keys; none or several is a ValueError that tells what was seen."""
    keys = list(state_dict)
    found = [dialect for dialect in DIALECTS if dialect.recognises(keys)]
    if _any(r'\.logit_scale$|\.cpb_mlp\.', keys):
        problem = 'this is Swin V2, and TwoBranchSwin is Swin V1'
    elif _any(r'^layers\.\d+\.downsample\.', keys) and not _any(r'^layers\.0\.downsample\.', keys):
        problem = "these are timm's names, whose patch merging opens a stage; use Microsoft's or mmpretrain's file"
    elif len(found) > 1:
        problem = f'the keys fit several dialects, {[dialect.name for dialect in found]}; convert one model at a time'
    elif not found:
        problem = f'the keys fit none of the dialects {[dialect.name for dialect in DIALECTS]}'
    else:
        return found[0]
    seen = sorted({key.split('.')[0] for key in keys})
    raise ValueError(f'SRC: {problem}. Seen: {len(keys)} tensors under {seen}, for example {keys[:5]}.')


def translate(state_dict: StateDict) -> tuple[StateDict, Dialect]:
    """Return ``state_dict`` in mmdet 3.x names together with the dialect it was written in."""
    dialect = detect_dialect(state_dict)
    translated = dialect.translate(state_dict)
    strange = [key for key in translated if not is_stock_name(key) and not _LOW_NORM.search(key)]
    strange += [key for key in translated if is_stock_name(key) and key.endswith('quant_config')]
    if strange:
        # Dropping quantizer state would leave folded weights that look like float ones.
        raise ValueError(
            f'SRC: it holds {len(strange)} tensors that no float detector on Swin has, such as {strange[:5]}; '
            'convert the float checkpoint that it was made from'
        )
    return translated, dialect


def is_stock_name(key: str) -> bool:
    """Whether ``key`` is outside the backbone or one of those that mmdet's own Swin has; TwoBranchSwin has more."""
    return not key.startswith(PREFIX) or bool(_STOCK_NAME.match(key, len(PREFIX)))


def reorder_patch_merging(weight: Tensor, dim: int) -> Tensor:
    """Bring the 4C merged inputs along ``dim`` from Microsoft's order into that of ``nn.Unfold``.

    Microsoft concatenates the (row, column) positions (0,0), (1,0), (0,1), (1,1) with C channels each, so its index
    counts (column, row, channel); ``nn.Unfold`` counts (channel, row, column): the same three axes reversed.
    """
    return weight.unflatten(dim, (2, 2, -1)).transpose(dim, dim + 2).flatten(dim, dim + 2).contiguous()


def _from_microsoft(state_dict: StateDict) -> StateDict:
    backbone = {key: value for key, value in state_dict.items() if not key.startswith('head.')}
    head = {f'head.fc.{key[len("head.") :]}': value for key, value in state_dict.items() if key.startswith('head.')}
    return _with_prefix(_with_output_norms(_swin_from_microsoft(backbone))) | head


def _from_swin_object_detection(state_dict: StateDict) -> StateDict:
    backbone, heads = _split(state_dict)
    return _with_prefix(_swin_from_microsoft(backbone)) | heads


def _from_mmpretrain(state_dict: StateDict) -> StateDict:
    backbone, head = _split(state_dict)
    return _with_prefix(_with_output_norms(_without_masks(backbone))) | head


def _from_mmdet(state_dict: StateDict) -> StateDict:
    if _any(r'^stages\.', state_dict):
        return _with_prefix(dict(state_dict))
    # An EMA hook of 2.x keeps a second set of weights beside the first, under names with underscores.
    return {_rename(key, _MMDET_2_RENAMES): value for key, value in state_dict.items() if not key.startswith('ema_')}


def _swin_from_microsoft(backbone: StateDict) -> StateDict:
    translated = {}
    for key, value in _without_masks(backbone).items():
        if key.endswith('.downsample.reduction.weight'):
            value = reorder_patch_merging(value, dim=1)
        elif '.downsample.norm.' in key:
            value = reorder_patch_merging(value, dim=0)
        translated[_rename(key, _SWIN_RENAMES)] = value
    return translated


def _with_output_norms(backbone: StateDict) -> StateDict:
    """Name the only output norm of a classifier after its stage and start the other stages' norms from identity.

    A classifier has none for the earlier stages; a detector trained from it starts them there too.
    """
    backbone = dict(backbone)
    num_stages = 1 + max(int(key.split('.')[1]) for key in backbone if key.startswith('stages.'))
    for name in ('weight', 'bias'):
        if f'norm.{name}' in backbone:
            backbone[f'norm{num_stages - 1}.{name}'] = backbone.pop(f'norm.{name}')
    for stage in range(num_stages):
        width = backbone[f'stages.{stage}.blocks.0.norm1.weight']
        backbone.setdefault(f'norm{stage}.weight', torch.ones_like(width))
        backbone.setdefault(f'norm{stage}.bias', torch.zeros_like(width))
    return backbone


def _without_masks(backbone: StateDict) -> StateDict:
    """Drop the shift masks that some versions stored: they belong to one input size."""
    return {key: value for key, value in backbone.items() if not key.endswith('attn_mask')}


def _split(state_dict: StateDict) -> tuple[StateDict, StateDict]:
    """Return (backbone without its prefix, everything else)."""
    backbone = {key.removeprefix(PREFIX): value for key, value in state_dict.items() if key.startswith(PREFIX)}
    return backbone, {key: value for key, value in state_dict.items() if not key.startswith(PREFIX)}


def _with_prefix(backbone: StateDict) -> StateDict:
    return {PREFIX + key: value for key, value in backbone.items()}


def _rename(key: str, rules: Renames) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _any(pattern: str, keys: Iterable[str]) -> bool:
    return any(re.search(pattern, key) for key in keys)


def _is_openmmlab_classifier(keys: Collection[str]) -> bool:
    """A backbone in mmcv names with the output norm of its last stage only, and at most a linear head beside it."""
    return (
        _any(r'^backbone\.stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.weight$', keys)
        and {key.split('.')[0] for key in keys} <= {'backbone', 'head'}
        and not _any(r'^backbone\.norm0\.', keys)
    )


def _is_mmdet(keys: Collection[str]) -> bool:
    has_swin = _any(r'^(backbone\.)?stages\.\d+\.blocks\.\d+\.attn\.w_msa\.qkv\.weight$', keys)
    return has_swin and not _is_openmmlab_classifier(keys)


DIALECTS = (
    Dialect('microsoft', lambda keys: _any(r'^layers\.\d+\.blocks\.\d+\.attn\.qkv\.weight$', keys), _from_microsoft),
    Dialect(
        'swin-object-detection',
        lambda keys: _any(r'^backbone\.layers\.\d+\.blocks\.\d+\.attn\.qkv\.weight$', keys),
        _from_swin_object_detection,
    ),
    Dialect('mmpretrain', _is_openmmlab_classifier, _from_mmpretrain),
    Dialect('mmdet', _is_mmdet, _from_mmdet),
)
