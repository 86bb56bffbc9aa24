"""TensorRT: explicit quantization, int8 with zero point 0. It was not run: a rule checker stands in for it.

Rules as its documentation states them (10 and 11): Quantize and Dequantize come in pairs, int8, zero point 0, one scale
per activation tensor, one per output channel of a weight; both inputs of a product are dequantized; of an addition only
the residual, so that the product on its other side takes it in; opset 19 or later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..lowering import Dialect
from ..nodes import OLDEST_OPSET
from ..onnx_nodes import PASSED, OnnxNodes
from .base import Census, Session, Target

PRODUCTS = ('MatMul', 'Gemm', 'Conv')
NOT_HERE = 'target "tensorrt" does not run here; build an engine with trtexec (docs/export.md)'


class TensorRT(Target):
    """What ``trtexec`` builds an engine from."""

    dialect = Dialect('tensorrt', signed=True, residuals=True)
    package = None

    def violations(self, model: Any) -> list[str]:
        return [*_of_opset(model), *_Rules(model).violations()]

    def session(self, path: Path, threads: int | None = None) -> Session:
        raise ValueError(NOT_HERE)

    def census(self, path: Path) -> Census:
        raise ValueError(NOT_HERE)


def _of_opset(model: Any) -> list[str]:
    lines = []
    for opset in model.opset_import:
        if opset.domain not in ('', 'ai.onnx'):
            lines.append(f'operators of {opset.domain!r}: only standard ones are known')
        elif opset.version < OLDEST_OPSET:
            lines.append(f'opset {opset.version}: {OLDEST_OPSET} is the oldest')
    return lines


class _Rules(OnnxNodes):
    """What of a graph breaks the rules."""

    def violations(self) -> list[str]:
        lines: list[str] = []
        for node in self.nodes:
            if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
                lines += [f'{node.name}: {line}' for line in self._of_pair(node)]
            elif node.op_type == 'Clip' and self.made_by(node.input[0]) == 'QuantizeLinear':
                lines.append(f'{node.name}: Clip between Quantize and Dequantize; use eight bits')
            elif node.op_type in PRODUCTS:
                dequantized = [self.dequantize(name) is not None for name in node.input[:2]]
                if any(dequantized) and not all(dequantized):
                    lines.append(f'{node.name}: one input of the product is quantized, the other is not')
            elif node.op_type == 'Add':
                lines += [f'{node.name}: {line}' for line in self._of_addition(node)]
        return lines

    def _of_addition(self, node: Any) -> list[str]:
        quantized = [name for name in node.input if self._is_activation(self.dequantize(name))]
        others = [name for name in node.input if name not in quantized]
        if len(quantized) > 1 or (quantized and not others):
            return ['both inputs of the addition are quantized; the output of a product is added as it is']
        if quantized and not self._ends_in_product(others[0]):
            return ['a quantized residual is added to what is no product, which nothing can fuse']
        return []

    def _is_activation(self, dequantize: Any) -> bool:
        return dequantize is not None and dequantize.input[0] not in self.constants

    def _ends_in_product(self, name: str) -> bool:
        """Whether a value is the output of products, a bias and moved entries aside."""
        maker = self.makers.get(name)
        if maker is None:
            return False
        if maker.op_type in PRODUCTS:
            return True
        if maker.op_type not in (*PASSED, 'Concat', 'Add'):
            return False
        values = [value for value in maker.input if value not in self.constants]
        of_shape = 1 if maker.op_type in PASSED else len(values)
        return bool(values) and all(self._ends_in_product(value) for value in values[:of_shape])

    def _of_pair(self, node: Any) -> list[str]:
        lines = []
        of_weight = node.input[0] in self.constants
        scale = self.constants.get(node.input[1])
        zero_point = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero_point is None and node.op_type == 'QuantizeLinear':
            lines.append('no zero point says that codes are int8')
        if zero_point is not None and (zero_point.dtype.name != 'int8' or zero_point.any()):
            lines.append('zero points other than int8 0')
        if scale is None or (scale.ndim and not of_weight):
            lines.append('an activation needs one constant scale')
        elif (scale <= 0).any():
            lines.append('scales must be positive')
        if node.op_type == 'DequantizeLinear' and not of_weight and self.made_by(node.input[0]) != 'QuantizeLinear':
            lines.append('Dequantize without the Quantize in front of it')
        return lines
