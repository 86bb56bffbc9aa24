"""Stock Swin's arguments, checked before stock fails on them with an error that names no field."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

from mmdet.models.backbones.swin import SwinTransformer

from mixaq_mmdet.checks import check_list, constructor_arguments


def checked_arguments(backbone: type, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of stock Swin by name, defaults included; a ValueError names the first that does not fit.

    Args:
        backbone: the class that is built, for the keys it knows itself.
        args: positional arguments for stock Swin.
        kwargs: all others.
    """
    stock = signature(SwinTransformer)
    unknown = sorted(set(kwargs) - set(stock.parameters))
    if unknown:
        raise ValueError(
            f'model.backbone has unknown keys {unknown}; use some of {constructor_arguments(backbone.__mro__)}'
        )
    given = stock.bind(*args, **kwargs)
    given.apply_defaults()
    _check_geometry(given.arguments)
    return given.arguments


def pretrain_size(arguments: dict[str, Any]) -> tuple[int, int]:
    """``pretrain_img_size`` as (height, width)."""
    size = arguments['pretrain_img_size']
    sides = (size,) if isinstance(size, int) else tuple(size)
    return sides[0], sides[-1]


def _check_geometry(arguments: dict[str, Any]) -> None:
    window_size = arguments['window_size']
    if not isinstance(window_size, int) or window_size < 2:
        raise ValueError(f'window_size={window_size!r} must be an integer of at least 2; stock Swin uses 7')
    depths = check_list(arguments['depths'], 'depths', '(2, 2, 6, 2)')
    for field, example in (('num_heads', '(3, 6, 12, 24)'), ('strides', '(4, 2, 2, 2)')):
        value = check_list(arguments[field], field, example)
        if len(value) < len(depths):
            raise ValueError(
                f'{field}={arguments[field]!r} must have a value for each of the {len(depths)} stages of depths'
            )
    stages = range(len(depths))
    indices = check_list(arguments['out_indices'], 'out_indices', '(0, 1, 2, 3)')
    if not indices or any(index not in stages for index in indices):
        raise ValueError(f'out_indices={arguments["out_indices"]!r} must be some of the stages of depths, {[*stages]}')
    frozen = arguments['frozen_stages']
    if frozen not in range(-1, len(depths) + 1):
        raise ValueError(f'frozen_stages={frozen!r} must be -1 (none) to {len(depths)}, the number of stages')
