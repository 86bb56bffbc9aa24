"""The configs that come with the package, by name: from a wheel's ``.mim`` folder or from a checkout."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

_PACKAGE = Path(__file__).parent


def config_path(name: str) -> str:
    """The path of a shipped config, for ``_base_``, ``Config.fromfile`` or a command line.

    Args:
        name: relative to ``configs/``, such as ``'mixaq/mask-rcnn_swin-t_mixaq-ptq-w4a8.py'``.
    """
    folder = configs_folder()
    path = folder / name
    known = sorted(str(found.relative_to(folder)) for found in folder.rglob('*.py'))
    if name not in known:
        close = get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
        raise ValueError(
            f'no shipped config is named {name!r}; similar names are {close}, and all of them are in {folder}'
        )
    return str(path)


def configs_folder() -> Path:
    """Where shipped configs lie: in the package of a wheel, beside the package in a checkout."""
    for folder in (_PACKAGE / '.mim' / 'configs', _PACKAGE.parent / 'configs'):
        if (folder / '_base_').is_dir():
            return folder
    raise ValueError(f'this installation of mixaq_mmdet has no configs: {_PACKAGE} was copied by hand; pip install it')
