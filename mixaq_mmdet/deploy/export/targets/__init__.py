"""The runtimes that a model is exported for, by name."""

from __future__ import annotations

from .base import Census, Target
from .onnxruntime import OnnxRuntime
from .openvino import OpenVino
from .tensorrt import TensorRT

TARGETS: dict[str, Target] = {target.name: target for target in (OnnxRuntime(), OpenVino(), TensorRT())}


def find_target(name: str) -> Target:
    """The target of a name; a ValueError lists them."""
    if name not in TARGETS:
        raise ValueError(f'target={name!r} is unknown; use one of {list(TARGETS)}')
    return TARGETS[name]


__all__ = ['TARGETS', 'Census', 'Target', 'find_target']
