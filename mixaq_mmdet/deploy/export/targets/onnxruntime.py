"""ONNX Runtime on a CPU: linear layers as Gemm with int32 bias, which become QGemm; convolutions as ConvInteger.

Weights are uint8: products with int8 ones saturate on CPUs without VNNI. On Zen 4 with VNNI both run alike. On a Xeon
with AMX int8 ones are faster: an export writes them when asked.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..lowering import Dialect
from .base import Census, Session, Target

INTEGER = {'QGemm', 'QLinearConv', 'QLinearMatMul', 'MatMulInteger', 'ConvInteger', 'MatMulIntegerToFloat'}


class OnnxRuntime(Target):
    """onnxruntime's CPU provider."""

    dialect = Dialect('onnxruntime', as_gemm=True, products=False, weights='uint8')
    package = 'onnxruntime'

    def session(self, path: Path, threads: int | None = None) -> Session:
        session = _load(path, threads)
        return lambda inputs: session.run(None, dict(inputs))

    def census(self, path: Path) -> Census:
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            optimised = Path(folder) / 'optimised.onnx'
            _load(path, None, optimised)
            # a fused kernel's output keeps the name that the product's had
            kernels = {node.output[0]: node.op_type for node in onnx.load(optimised).graph.node}
        census = Census()
        for output, op, macs in products(onnx.load(path)):
            kernel = kernels.get(output, op)
            census.add(kernel if kernel in INTEGER else op, macs, kernel in INTEGER)
        return census


def _load(path: Path, threads: int | None, optimised: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def products(model: Any) -> Iterator[tuple[str, str, int]]:
    """Output, operator and multiply-accumulates of each product of an ``onnx.ModelProto``."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in values}
    shapes |= {initializer.name: list(initializer.dims) for initializer in inferred.graph.initializer}
    for node in inferred.graph.node:
        if node.op_type not in ('Gemm', 'MatMul', 'Conv', 'ConvInteger', 'ConvTranspose'):
            continue
        left, right, out = (shapes.get(name, [0]) for name in (*node.input[:2], node.output[0]))
        if node.op_type in ('Gemm', 'MatMul'):
            macs = math.prod(out) * left[-1]
        else:  # each output, or for a transposed one each input, meets the weight of one channel
            macs = math.prod(left if node.op_type == 'ConvTranspose' else out) * math.prod(right[1:])
        yield node.output[0], node.op_type, macs
