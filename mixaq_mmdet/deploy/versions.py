"""Integer files of earlier versions, in today's form."""

from __future__ import annotations

from typing import Any

from .state import BLOCK_LAYERS, CONVERT_ANEW, FORMAT, VERSION, Header, State

BACKBONE_FORMAT = 'mixaq_mmdet.integer_swin'
OLDEST = 2


def up_to_date(header: Header, state: State) -> tuple[Header, State]:
    """A header and its tensors as this version writes them.

    Raises:
        ValueError: for another format, and for a version that this package does not read.
    """
    found, version = header.get('format'), header['version']
    if found not in (FORMAT, BACKBONE_FORMAT):
        raise ValueError(f'the integer file has format {found!r}, not {FORMAT!r}; {CONVERT_ANEW}')
    if version > VERSION:
        raise ValueError(
            f'the integer file has version {version}, this package knows up to {VERSION}; update mixaq_mmdet, or '
            f'{CONVERT_ANEW}'
        )
    if version < OLDEST:
        raise ValueError(
            f'the integer file has version {version}, and the oldest that can be read is {OLDEST}; {CONVERT_ANEW}'
        )
    if version == VERSION:
        return header, state
    try:
        return _from_version_2(header, state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f'the header of the integer file is incomplete ({error}); {CONVERT_ANEW}') from error


def _from_version_2(header: Header, state: State) -> tuple[Header, State]:
    """Version 2 named the layers of a block shortly and kept the grids of their inputs with the block."""
    layers: dict[str, Any] = {}
    blocks: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for path, row in header['layers'].items():
        block, _, name = path.rpartition('.')
        place = f'{block}.{BLOCK_LAYERS[name]}' if block in header['blocks'] else path
        grids = _input_grids(header['blocks'][block], name) if place != path else {'high': row['grid']}
        layers[place] = {**{key: row[key] for key in ('bits', 'stride', 'shape')}, 'input': grids}
        if place != path:
            renamed[path] = place
            renamed.update({f'{block}.{name}_in.{branch}': f'{place}.input.{branch}' for branch in grids})
    for path, block in header['blocks'].items():
        high, low = block['grids']
        products = {role: {'high': high[role], 'low': low[role]} for role in high if not role.endswith('_in')}
        blocks[path] = {**block, 'grids': products}
    upgraded = {'format': FORMAT, 'version': VERSION, 'layers': layers, 'blocks': blocks}
    return upgraded, {_renamed(name, renamed): value for name, value in state.items()}


def _input_grids(block: dict[str, Any], name: str) -> dict[str, Any]:
    return {branch: grids[f'{name}_in'] for branch, grids in zip(('high', 'low'), block['grids'], strict=True)}


def _renamed(name: str, renamed: dict[str, str]) -> str:
    owner, _, last = name.rpartition('.')
    return f'{renamed[owner]}.{last}' if owner in renamed else name
