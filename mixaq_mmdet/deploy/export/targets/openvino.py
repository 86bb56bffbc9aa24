"""OpenVINO on a CPU: plain Quantize and Dequantize nodes, Clip between them below eight bits."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..lowering import Dialect
from .base import Census, Session, Target

PRODUCTS = ('FullyConnected', 'MatMul', 'Convolution', 'Deconvolution')


class OpenVino(Target):
    """OpenVINO's CPU device."""

    dialect = Dialect('openvino')
    package = 'openvino'

    def session(self, path: Path, threads: int | None = None) -> Session:
        compiled = _compile(path, threads)
        return lambda inputs: list(compiled(dict(inputs)).values())

    def census(self, path: Path) -> Census:
        census = Census()
        for op in _compile(path, None).get_runtime_model().get_ops():
            info = op.get_rt_info()
            kind, primitive = (_text(info[key]) for key in ('layerType', 'primitiveType'))
            if kind in PRODUCTS:
                census.add(f'{kind} {primitive}', _macs(op, kind), primitive.upper().endswith(('I8', 'U8')))
        return census


@lru_cache(maxsize=1)
def openvino_core() -> Any:
    """The process's only ``openvino.Core``.

    The CPU plugin of each gives the thread an alternate signal stack, and gives back the one before it when it goes.
    Two whose lives overlap leave a stack that is no longer mapped; the next signal (Ctrl-C) ends the process.
    """
    import openvino

    return openvino.Core()


def _compile(path: Path, threads: int | None) -> Any:
    core = openvino_core()
    options: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY'}
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    return core.compile_model(core.read_model(str(path)), 'CPU', options)


def _text(value: Any) -> str:
    return str(value.astype(str)) if hasattr(value, 'astype') else str(value)


def _macs(op: Any, kind: str) -> int:
    """Multiply-accumulates of a product; 0 where a size depends on the image."""
    shapes = [op.get_output_partial_shape(0), *(op.get_input_partial_shape(index) for index in (0, 1))]
    if any(shape.is_dynamic for shape in shapes):
        return 0
    out, left, right = (list(shape.to_shape()) for shape in shapes)
    if kind in ('FullyConnected', 'MatMul'):
        return math.prod(out) * left[-1]
    return math.prod(out if kind == 'Convolution' else left) * math.prod(right[1:])
