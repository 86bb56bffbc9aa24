"""Overrides: what they may say, and that each one, like the other options, can change something."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from mixaq_mmdet.checks import check_flag, check_list, check_mapping

from ..registry import QUANTIZERS
from .functional import check_bits
from .layers import QuantConvTranspose2d
from .roles import BRANCH_ROLES, ROLES, roles_of

if TYPE_CHECKING:
    from .methods.base import Method

BIT_KEYS = ('w_bits', 'a_bits', 'low_a_bits')
GRID_KEYS = ('symmetric', 'per_channel')
CHANGES = (*BIT_KEYS, 'enabled', *GRID_KEYS, 'grid')
GRID_FLAGS = {'w_symmetric': False, 'w_per_channel': True, 'a_symmetric': False}
"""Options of every method that only grids read, with their defaults."""


def check_override(index: int, override: Any) -> dict[str, Any]:
    """The override at ``index`` of ``quant.overrides`` as a dict, if it is well-formed and says what to change."""
    field = f'quant.overrides[{index}]'
    override = check_mapping(override, field, "dict(pattern='stages.3.*', w_bits=8)")
    known = ('pattern', 'roles', *CHANGES)
    unknown = sorted(set(override) - set(known))
    if unknown:
        raise ValueError(f'{field} has unknown keys {unknown}; use some of {list(known)}')
    if not isinstance(override.get('pattern'), str):
        raise ValueError(f"{field}.pattern is missing; give a pattern for module paths such as 'stages.3.*'")
    if 'roles' in override:
        override['roles'] = check_list(override['roles'], f'{field}.roles', "['qkv_in']")
    for role in override.get('roles', ()):
        if role not in ROLES:
            raise ValueError(f'{field}.roles has {role!r}; use some of {list(ROLES)}')
    for key, value in override.items():
        if key in BIT_KEYS:
            check_bits(value, f'{field}.{key}')
        elif key == 'grid':
            if value not in grids_by_override():
                raise ValueError(f'{field}.grid={value!r} is unknown; use one of {grids_by_override()}')
        elif key in CHANGES:
            check_flag(value, f'{field}.{key}')
    if not set(override) & set(CHANGES):
        raise ValueError(f'{field} changes nothing; add some of {list(CHANGES)}, or leave the override out')
    return override


def grids_by_override() -> list[str]:
    """Names of the quantizers that an override may put in the place of a method's own."""
    return [name for name, cls in QUANTIZERS.module_dict.items() if cls.override_roles]


def replaces_grid(override: Mapping[str, Any], role: str) -> bool:
    """Whether an override puts another quantizer in a role's place."""
    return 'grid' in override and role in QUANTIZERS.get(override['grid']).override_roles


def has_option(grid: Mapping[str, Any], key: str) -> bool:
    """Whether overrides may set ``key`` in a grid: one of a ``quantizer_config``, which names what else it lets set."""
    return grid['type'] == 'Uniform' or key in grid


def check_grid_flags(method: Method) -> None:
    """Raise a ValueError if an option that shapes grids shapes none of the method's."""
    for flag, default in GRID_FLAGS.items():
        value = getattr(method, flag)
        usual = copy(method)
        setattr(usual, flag, default)
        if value != default and all(method.quantizer_config(r) == usual.quantizer_config(r) for r in ROLES):
            raise ValueError(
                f'{method.field}.{flag}={value} has no effect: no grid of {method.name} has this option; leave it out'
            )


def check_overrides(method: Method, paths: list[str]) -> None:
    """Raise a ValueError if an override, or ``low_a_bits``, can change none of the layers: a silent no-op."""
    for index, override in enumerate(method.overrides):
        pattern = override['pattern']
        matched = [path for path in paths if fnmatchcase(path, pattern)]
        if not matched:
            raise ValueError(
                f'{method.field}.overrides pattern {pattern!r} matches no layer; paths look like {paths[:3]}'
            )
        theirs = list(dict.fromkeys(role for path in matched for role in roles_of(path)))
        roles = [role for role in theirs if role in override.get('roles', ROLES)]
        keys = [key for key in override if key in CHANGES]
        if not any(_acts(method, override, key, role) for key in keys for role in roles):
            reason = (
                f'{", ".join(keys)} cannot act on {roles}: w_bits are of weights, a_bits of activations (of the image '
                'it is patch_bits), low_a_bits of activations inside two-branch blocks, symmetric and per_channel of '
                'grids that have them, grid of roles that it fits (attn, fc2_in)'
                if roles
                else f'roles={override["roles"]} are not among {theirs}, those of its layers'
            )
            raise ValueError(f'{method.field}.overrides[{index}], pattern {pattern!r}, changes nothing: {reason}')
    if not any(role in BRANCH_ROLES for path in paths for role in roles_of(path)):
        for option, needed in method.backbone_options.items():
            if value := getattr(method, option):
                raise ValueError(
                    f'{method.field}.{option}={value} has no effect: none of its layers {needed}; leave it out'
                )


def check_head_options(method: Method, root: nn.Module) -> None:
    """Raise a ValueError if an option that is about one kind of layer finds none of it."""
    if method.deconvolution and not any(isinstance(module, QuantConvTranspose2d) for module in root.modules()):
        raise ValueError(
            f'{method.field}.deconvolution=True has no effect: no deconvolution whose kernel is its stride was '
            'quantized; leave it out'
        )


def _acts(method: Method, override: Mapping[str, Any], key: str, role: str) -> bool:
    if key == 'grid':
        return replaces_grid(override, role)
    if key in GRID_KEYS:
        return has_option(method.quantizer_config(role), key)
    if key == 'w_bits':
        return role == 'weight'
    if key == 'a_bits':
        return role not in ('weight', 'patch_in')
    return key == 'enabled' or role in BRANCH_ROLES
