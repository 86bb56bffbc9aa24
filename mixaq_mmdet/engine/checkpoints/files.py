"""Reading weights out of any framework's checkpoint without running its code, and writing files whole or not at all."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, _utils

from mixaq_mmdet.models.checkpoint_dialects import StateDict
from mixaq_mmdet.reporting.files import whole_file

_CONTAINERS = ('state_dict', 'model')
_AVERAGED = ('ema_state_dict', 'model_ema', 'state_dict_ema')
_TENSOR_BUILDERS = ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter')


class _Inert:
    """Takes the place of every object that is not made of tensors and plain Python: keeps nothing and runs nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def __call__(self, *_args: Any, **_kwargs: Any) -> _Inert:
        return self

    def __setstate__(self, _state: Any) -> None: ...

    def __setitem__(self, _key: Any, _value: Any) -> None: ...

    def append(self, _value: Any) -> None: ...

    def extend(self, _values: Any) -> None: ...

    def add(self, _value: Any) -> None: ...


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Resolve the names that tensors are made of; configs, histories and schedulers of any framework stay inert."""
        if module == 'collections' and name == 'OrderedDict':
            return OrderedDict
        if module == 'torch._utils' and name in _TENSOR_BUILDERS:
            return getattr(_utils, name)
        if module == 'torch.storage' and name in ('UntypedStorage', 'TypedStorage'):
            return getattr(torch.storage, name)
        if module == 'torch':
            value = getattr(torch, name, None)
            if isinstance(value, torch.dtype) or name in ('Size', 'device') or name.endswith('Storage'):
                return value
        return _Inert


def _load_tensors(file: Any, **options: Any) -> Any:
    return _TensorUnpickler(file, **options).load()


_TENSORS_ONLY = SimpleNamespace(__name__='tensors_only', Unpickler=_TensorUnpickler, load=_load_tensors)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load ``path`` onto the CPU; objects that are neither tensors nor plain Python come back as inert placeholders."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'SRC={str(path)!r} is not a file; give the path of a downloaded checkpoint')
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=False, pickle_module=_TENSORS_ONLY)
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f'SRC={str(path)!r} cannot be read as a PyTorch checkpoint: {error}') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'SRC={str(path)!r} holds a {type(checkpoint).__name__}; a dict of weights is needed')
    return checkpoint


def pick_weights(checkpoint: dict[str, Any], ema: bool = False) -> tuple[StateDict, str]:
    """Return (the tensors to convert, where they were found).

    mmengine and mmdet 2.x save the *averaged* weights under the ordinary names, because these are what a test should
    load, and keep the training weights in the EMA's place; others keep the average beside the training weights.
    """
    container = next((name for name in _CONTAINERS if isinstance(checkpoint.get(name), dict)), None)
    weights = _tensors(checkpoint[container] if container else checkpoint)
    if not weights:
        seen = [str(key) for key in checkpoint][:10]
        raise ValueError(f'SRC: no weights under {list(_CONTAINERS)} or at the top level; it has {seen}')
    if not ema:
        return weights, container or 'the top level'
    averaged = next((name for name in _AVERAGED if isinstance(checkpoint.get(name), dict)), None)
    if any(key.startswith('ema_') for key in weights) or (averaged and 'steps' in checkpoint[averaged]):
        return weights, f'{container} (the EMA hook saved the averaged weights there)'
    if averaged is None:
        raise ValueError(f'--ema: SRC has no averaged weights under any of {list(_AVERAGED)}; convert it without --ema')
    return _tensors(checkpoint[averaged]), averaged


def dataset_meta(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return classes and palette in the form that inference APIs of mmdet 3.x read, empty if the file has none."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, dict):
        return {}
    found = meta.get('dataset_meta')  # mmdet 2.x has the names in meta itself, in capitals
    lowered = {str(key).lower(): value for key, value in (found if isinstance(found, dict) else meta).items()}
    return {key: lowered[key] for key in ('classes', 'palette') if _is_plain(lowered.get(key))}


def write_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Save ``checkpoint`` as ``path``, whole or not at all."""
    with whole_file(path) as temporary:
        torch.save(checkpoint, temporary)


def _tensors(container: dict[str, Any]) -> StateDict:
    """The tensors of a state dict without the prefix of a parallel wrapper."""
    tensors = {key: value for key, value in container.items() if isinstance(value, Tensor) and key != 'steps'}
    return {key.removeprefix('module.'): value.detach() for key, value in tensors.items()}


def _is_plain(value: Any) -> bool:
    """Whether ``value`` is a non-empty nest of lists, tuples, strings and numbers (an inert placeholder is not)."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_plain(item) for item in value)
    return isinstance(value, (str, int, float))
