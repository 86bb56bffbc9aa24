"""The nodes of an ``onnx.ModelProto`` by what they make, and its constants by name."""

from __future__ import annotations

from typing import Any

import numpy as np

PASSED = ('Transpose', 'Reshape')


class OnnxNodes:
    """Nodes and constants of a graph.

    Args:
        model: an ``onnx.ModelProto``.
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.nodes = model.graph.node
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.constants: dict[str, np.ndarray] = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == 'Constant' and node.attribute[0].name == 'value':
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)

    def made_by(self, name: str) -> str:
        """The operator that makes a value; '' for inputs and initializers."""
        return self.makers[name].op_type if name in self.makers else ''

    def dequantize(self, name: str) -> Any:
        """The DequantizeLinear that a value comes from, Transpose and Reshape aside; None where there is none."""
        while self.made_by(name) in PASSED:
            name = self.makers[name].input[0]
        return self.makers[name] if self.made_by(name) == 'DequantizeLinear' else None
