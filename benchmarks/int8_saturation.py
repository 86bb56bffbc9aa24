"""What runtimes do with int8 products whose codes exceed 16 bits: exact, or saturated without a word.

    python benchmarks/int8_saturation.py [--json docs/results/int8_saturation.json]

One linear layer or 2x2 convolution as Quantize, Dequantize and product, with steps of 1, so that the exact result is
whole numbers; the relative error (Frobenius norm) is against them. It needs onnx, onnxruntime and openvino, not torch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

ROWS, OUTPUTS, WIDTH, SIDE = 40, 32, 64, 2
PRODUCTS = ('QGemm', 'Gemm', 'Conv', 'QLinearConv', 'FullyConnected', 'Convolution')


class Case(NamedTuple):
    """A product: its operator, the types of its codes, how large they are and whether weights have zero points."""

    operator: str
    inputs: str
    weights: str
    codes: str
    zero_points: bool


def cases() -> Iterator[Case]:
    """Every combination that exports write, and those that they avoid."""
    for operator in ('Gemm', 'Conv'):
        for inputs, weights in (('uint8', 'int8'), ('int8', 'int8'), ('uint8', 'uint8')):
            for codes in ('largest', 'random', 'weights of 4 bits'):
                yield Case(operator, inputs, weights, codes, False)
        yield Case(operator, 'uint8', 'int8', 'random', True)


def codes_of(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of the inputs (ROWS, WIDTH) and weights (OUTPUTS, WIDTH), and zero points (OUTPUTS,)."""
    low, high = np.iinfo(case.inputs).min, np.iinfo(case.inputs).max
    of_weight = np.iinfo(case.weights)
    x = rng.integers(low, high + 1, (ROWS, WIDTH))
    weight = rng.integers(of_weight.min, of_weight.max + 1, (OUTPUTS, WIDTH))
    if case.codes == 'largest':
        x[:], weight[:] = high, of_weight.max
    if case.codes == 'weights of 4 bits':
        weight = rng.integers(-8, 8, (OUTPUTS, WIDTH)) + (128 if case.weights == 'uint8' else 0)
    zero = rng.integers(-20, 20, OUTPUTS) if case.zero_points else np.full(OUTPUTS, 128 * (case.weights == 'uint8'))
    return x, weight, zero


def product(case: Case, x: np.ndarray, weight: np.ndarray, zero: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """The model, its input as floats, and what is exact."""
    offset = 128 if case.inputs == 'uint8' else 0
    values, exact = x - offset, (x - offset) @ (weight - zero[:, None]).T
    if case.operator == 'Conv':
        values, exact = values.reshape(ROWS, -1, SIDE, SIDE), exact.reshape(ROWS, OUTPUTS, 1, 1)
        weight = weight.reshape(OUTPUTS, -1, SIDE, SIDE)
    constants = {
        'one': np.float32(1),
        'offset': np.array(offset, case.inputs),
        'codes': weight.astype(case.weights),
        'ones': np.ones(OUTPUTS, np.float32),
        'zero': zero.astype(case.weights),
        'bias': np.zeros(OUTPUTS, np.int32),
    }
    nodes = [
        helper.make_node('QuantizeLinear', ['x', 'one', 'offset'], ['q']),
        helper.make_node('DequantizeLinear', ['q', 'one', 'offset'], ['d']),
        helper.make_node('DequantizeLinear', ['codes', 'ones', 'zero'], ['w'], axis=0),
        helper.make_node('DequantizeLinear', ['bias', 'ones'], ['b'], axis=0),
        helper.make_node(case.operator, ['d', 'w', 'b'], ['y'], **({'transB': 1} if case.operator == 'Gemm' else {})),
    ]
    graph = helper.make_graph(
        nodes,
        'product',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, exact.shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10)
    return model, values.astype(np.float32), exact


def of_onnxruntime(path: Path, x: np.ndarray) -> tuple[np.ndarray, str]:
    """What comes out, and the kernel."""
    optimised = path.with_name('optimised.onnx')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    names = [node.op_type for node in onnx.load(optimised).graph.node]
    return session.run(None, {'x': x})[0], next(name for name in names if name in PRODUCTS)


def of_openvino(core: openvino.Core, path: Path, x: np.ndarray) -> tuple[np.ndarray, str]:
    """Likewise."""
    model = core.compile_model(core.read_model(str(path)), 'CPU')
    found = [op.get_rt_info() for op in model.get_runtime_model().get_ops()]
    kernels = [(str(info['layerType'].astype(str)), str(info['primitiveType'].astype(str))) for info in found]
    return next(iter(model({'x': x}).values())), next(name for kind, name in kernels if kind in PRODUCTS)


def main() -> None:
    """Ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', type=Path)
    path_of_json = parser.parse_args().json
    rng, rows = np.random.default_rng(0), []
    core = openvino.Core()
    runs = {'onnxruntime': of_onnxruntime, 'openvino': partial(of_openvino, core)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'product.onnx'
        for case in cases():
            model, x, exact = product(case, *codes_of(case, rng))
            onnx.save(model, path)
            row: dict[str, Any] = case._asdict()
            for name, run in runs.items():
                out, kernel = run(path, x)
                error = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
                row[name] = {'relative_error': round(error, 4), 'kernel': kernel}
            rows.append(row)
            print(*case[:4], 'zero points' * case.zero_points, *(f'{name}: {row[name]}' for name in list(row)[5:]))
    if path_of_json:
        capabilities = core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
        device = {
            'cpu': core.get_property('CPU', 'FULL_DEVICE_NAME'),
            'openvino says it has': list(capabilities),
            'onnxruntime': version('onnxruntime'),
            'openvino': version('openvino'),
        }
        path_of_json.write_text(json.dumps({**device, 'products': rows}, indent=1) + '\n')


if __name__ == '__main__':
    main()
