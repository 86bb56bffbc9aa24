"""Shims for the host stack (torch, mmengine, mmpretrain); ``python -m mixaq_mmdet.compat`` is the doctor.

Only the standard library at module level: the doctor must run where the rest is broken.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from . import doctor

__all__ = ['allow_mmengine_checkpoints', 'import_despite_torchvision', 'prepare_host']

BROKEN_TORCHVISION = 'operator torchvision::nms does not exist'
_schemas: list[Any] = []  # a torch.library.Library takes its definitions along when it is collected


def prepare_host() -> None:
    """Make the installed stack usable: mmengine's checkpoints load, and an unloadable torchvision does no harm."""
    allow_mmengine_checkpoints()
    # Our models need mmdet.models in any case, and it tries mmpretrain, hence torchvision, by itself.
    import_despite_torchvision('mmdet.models')
    import torch

    if torch.version.cuda is None and torch.version.hip is None and importlib.util.find_spec('torchvision'):
        # mmengine's Runner imports torchvision for its environment report and only expects it to be absent.
        import_despite_torchvision('torchvision', optional=True)


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)``, the default since torch 2.6, read what mmengine itself saves.

    The message hub of a checkpoint holds HistoryBuffer objects: numpy arrays, numpy scalars and a table of statistics
    that was pickled as ``getattr(HistoryBuffer, name)``. The real ``getattr`` would open the door to anything, so
    under its name stands a look-up that knows this one class.
    """
    import torch

    if torch.__version__ < '2.6':
        return
    import numpy as np
    from mmengine.logging import HistoryBuffer

    multiarray = importlib.import_module('numpy._core.multiarray' if np.__version__ >= '2' else 'numpy.core.multiarray')
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All'] if code != 'O'}
    # With names: what is allowed without one, onedl-mmengine takes back behind each file that it loads.
    named = (HistoryBuffer, np.ndarray, np.dtype, *sorted(dtypes, key=lambda dtype: dtype.__name__))
    allowed: list[Any] = [(kind, f'{kind.__module__}.{kind.__name__}') for kind in named]
    for function in (multiarray._reconstruct, multiarray.scalar):
        # numpy 2 renamed the module: files name either.
        allowed += [(function, f'{module}.multiarray.{function.__name__}') for module in ('numpy._core', 'numpy.core')]
    allowed.append((_history_statistic, 'builtins.getattr'))
    torch.serialization.add_safe_globals(allowed)


def _history_statistic(owner: Any, name: str) -> Any:
    """The part of ``getattr`` that mmengine's checkpoints use: the statistics that HistoryBuffer registers."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise ValueError(
            f'the checkpoint asks for {name!r} of {owner!r}, which mmengine never writes; do not load it '
            '(only the statistics of HistoryBuffer are looked up)'
        )
    return getattr(HistoryBuffer, name)


def import_despite_torchvision(module: str, optional: bool = False) -> None:
    """Import ``module``; if that fails because torchvision's operators cannot load, supply their schemas and retry.

    A torchvision built for another torch (the PyPI wheel beside a CPU-only torch) dies on import while it describes
    operators that its library never defined. With the two missing schemas defined it imports; the operators
    themselves stay unavailable, and nothing in detection or classification calls them.

    Args:
        module: what to import.
        optional: whether another failure is acceptable because nothing here needs the module.
    """
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        if BROKEN_TORCHVISION in str(error):
            _define_torchvision_schemas()
            importlib.import_module(module)
        elif not optional:
            raise


def _define_torchvision_schemas() -> None:
    import torch

    for name in [name for name in sys.modules if name == 'torchvision' or name.startswith('torchvision.')]:
        del sys.modules[name]
    if not _schemas:
        library = torch.library.Library('torchvision', 'FRAGMENT')
        library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        _schemas.append(library)


if __name__ == '__main__':
    sys.exit(doctor.main())
