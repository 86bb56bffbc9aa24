"""Export to ONNX: a model in its static form, with the nodes that a runtime has integer kernels for."""

from .parity import ParityReport
from .run import export_model
from .targets import TARGETS

__all__ = ['TARGETS', 'ParityReport', 'export_model']
