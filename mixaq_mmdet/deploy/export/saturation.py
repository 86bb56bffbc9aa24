"""Products of codes that CPUs without VNNI compute wrongly: which of a file's, and whether this CPU is one of them.

The instruction that multiplies uint8 by int8 there (vpmaddubsw) adds two neighbouring products in 16 bits and saturates
without a word. uint8 weights take other instructions and are exact; so are products whose codes are small enough.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_nodes import OnnxNodes

HIGHEST = 2**15 - 1
"""What 16 bits hold."""
WIDTH = 64

Session = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Saturation:
    """How exact a file's products of codes are.

    Attributes:
        total: quantized products.
        beyond: those whose codes two by two exceed 16 bits.
        exact_here: whether the runtime computes such products right on this CPU; None where it was not asked.
    """

    total: int
    beyond: int
    exact_here: bool | None = None

    @property
    def wrong(self) -> bool:
        """Whether the file's products saturate on this CPU."""
        return self.beyond > 0 and self.exact_here is False

    def line(self, target: str) -> str:
        """One line for the report; '' where there is nothing to say."""
        if not self.total:
            return ''
        if self.wrong:
            return (
                f'WARNING: this CPU saturates int8 products in {target}, it has no VNNI: {self.beyond} of {self.total} '
                f'quantized products can be wrong. {_remedy(target)}'
            )
        if self.beyond:
            return (
                f'{self.beyond} of {self.total} quantized products exceed 16 bits: they are exact on this CPU, and '
                f'saturate in {target} on CPUs without VNNI. {_remedy(target)}'
            )
        return f'{self.total} quantized products, none saturates on CPUs without VNNI'


def _remedy(target: str) -> str:
    if target == 'onnxruntime':
        return 'Without --int8-weights no file for it does'
    return 'Export with --any-cpu for those; tools/run_onnx.py avoids it by itself'


def of_file(model: Any, shifted_in_float: bool = True) -> Saturation:
    """What an ``onnx.ModelProto`` tells without being run.

    Args:
        model: the file.
        shifted_in_float: whether the runtime computes products in float whose int8 weights have zero points.
    """
    reaches = list(_reaches(OnnxNodes(model), shifted_in_float))
    return Saturation(len(reaches), sum(reach > HIGHEST for reach in reaches))


def asked(found: Saturation, load: Callable[[Path], Session], unsigned_weights: bool) -> Saturation:
    """The same with what the runtime answers on this CPU.

    Args:
        found: of the file.
        load: makes a session of a file.
        unsigned_weights: whether the runtime is asked about uint8 weights, because the file has no others.
    """
    if not found.total or not (found.beyond or unsigned_weights):
        return found
    exact = products_are_exact(load, unsigned_weights)
    beyond = found.total if unsigned_weights and not exact else found.beyond
    return Saturation(found.total, beyond, exact)


def _reaches(nodes: OnnxNodes, shifted_in_float: bool) -> Iterator[int]:
    """The largest sum of two neighbouring products of each quantized product; 0 for uint8 weights."""
    for node in nodes.nodes:
        if node.op_type == 'ConvInteger':  # written with uint8 weights only
            yield 0
        if node.op_type not in ('Gemm', 'MatMul', 'Conv', 'ConvTranspose'):
            continue
        left, right = (nodes.dequantize(name) for name in node.input[:2])
        if left is not None and right is not None:
            yield _largest_code(nodes, left) * _largest_pair(nodes, right, shifted_in_float)


def _largest_code(nodes: OnnxNodes, dequantize: Any) -> int:
    """Of an activation, as unsigned codes: signed ones are shifted by 128 in front of the product."""
    highest, source = 255, dequantize.input[0]
    zero_point = nodes.constants.get(dequantize.input[2]) if len(dequantize.input) > 2 else None
    signed = zero_point is not None and zero_point.dtype == np.int8
    if nodes.made_by(source) == 'Clip':
        limit = nodes.constants.get(nodes.makers[source].input[2])
        highest = 255 if limit is None else int(limit) + 128 * signed
    return highest


def _largest_pair(nodes: OnnxNodes, dequantize: Any, shifted_in_float: bool) -> int:
    """Of the right side of a product; 0 where uint8 codes or zero points rule out a product of uint8 and int8."""
    codes = nodes.constants.get(dequantize.input[0])
    zero_point = nodes.constants.get(dequantize.input[2]) if len(dequantize.input) > 2 else None
    if zero_point is not None and (zero_point.dtype == np.uint8 or (shifted_in_float and zero_point.any())):
        return 0
    return largest_pair(codes) if codes is not None else 256


def largest_pair(codes: np.ndarray) -> int:
    """The largest absolute sum of two codes of a row, (N, ...)."""
    rows = np.sort(codes.reshape(len(codes), -1).astype(np.int64), axis=1)
    return int(max(rows[:, -2:].clip(min=0).sum(1).max(), -rows[:, :2].clip(max=0).sum(1).min()))


def products_are_exact(load: Callable[[Path], Session], unsigned_weights: bool = False) -> bool:
    """Whether the largest products of codes come out right: the runtime is asked, and not the CPU's name."""
    import onnx

    codes = np.full((16, WIDTH), 255 if unsigned_weights else 127)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'probe.onnx'
        onnx.save(_probe(codes.astype(np.uint8 if unsigned_weights else np.int8)), path)
        (out,) = load(path)({'image': np.full((16, WIDTH), 255, np.float32)})
    return bool((out == 255 * int(codes[0, 0]) * WIDTH).all())


def _probe(codes: np.ndarray) -> Any:
    """A linear layer of steps 1, as an ``onnx.ModelProto``."""
    from onnx import TensorProto, helper, numpy_helper

    rows = len(codes)
    constants = {
        'one': np.float32(1),
        'zero': np.uint8(0),
        'codes': codes,
        'ones': np.ones(rows, np.float32),
        'zeros': np.zeros(rows, codes.dtype),
        'bias': np.zeros(rows, np.int32),
    }
    nodes = [
        helper.make_node('QuantizeLinear', ['image', 'one', 'zero'], ['q']),
        helper.make_node('DequantizeLinear', ['q', 'one', 'zero'], ['x']),
        helper.make_node('DequantizeLinear', ['codes', 'ones', 'zeros'], ['w'], axis=0),
        helper.make_node('DequantizeLinear', ['bias', 'ones'], ['b'], axis=0),
        helper.make_node('Gemm', ['x', 'w', 'b'], ['y'], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        'probe',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, (rows, codes.shape[1]))],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, (rows, rows))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10)
