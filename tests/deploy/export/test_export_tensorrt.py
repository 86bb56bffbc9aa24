"""TensorRT does not run here: its rules are checked on the graph."""

import pytest
import torch
from export_cases import ONE_STAGE, SHAPE, calibrated
from tiny_backbone import images
from torch import nn

from mixaq_mmdet.deploy.export import export_model
from mixaq_mmdet.deploy.export.graph import to_onnx
from mixaq_mmdet.deploy.export.grids import ActivationGrid
from mixaq_mmdet.deploy.export.lowering import Dialect, lower
from mixaq_mmdet.deploy.export.onnx_nodes import OnnxNodes
from mixaq_mmdet.deploy.export.quantize import ActivationNodes
from mixaq_mmdet.deploy.export.targets import find_target
from mixaq_mmdet.quantization.layers import BranchQuantizers, to_quant_linear
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')


def quantized_additions(path):
    """Nodes of a file that add a dequantized activation."""
    nodes = OnnxNodes(onnx.load(path))
    return [
        node for node in nodes.nodes if node.op_type == 'Add' and any(nodes.dequantize(name) for name in node.input)
    ]


def test_symmetric_grids_keep_the_rules(tmp_path):
    path = tmp_path / 'trt.onnx'
    report = export_model(calibrated('symmetric'), path, 'tensorrt', SHAPE, 'backbone')
    assert report.notes == ['tensorrt: the file keeps its rules; it was not run']
    nodes = onnx.load(path).graph.node
    products = [node for node in nodes if node.op_type == 'MatMul']
    quantized = [node for node in nodes if node.op_type == 'QuantizeLinear']
    assert len(quantized) > len(products)  # both operands of attention products too
    assert 'Clip' not in {node.op_type for node in nodes}
    assert not quantized_additions(path)


@torch.no_grad()
def test_residuals_are_quantized_when_asked(tmp_path):
    """ONNX Runtime computes the standard nodes in float, so that it shows what the grids of residuals cost."""
    onnxruntime = pytest.importorskip('onnxruntime')
    model = calibrated('symmetric', **ONE_STAGE)
    outs = []
    for residuals in (False, True):
        path = tmp_path / f'{residuals}.onnx'
        options = {'images': images(), 'residuals': residuals}
        report = export_model(model, path, 'tensorrt', SHAPE, 'backbone', **options)
        plain = onnxruntime.SessionOptions()  # its optimizer would turn int8 activations into uint8 ones, and fails
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(path), plain, providers=['CPUExecutionProvider'])
        outs.append(torch.from_numpy(session.run(None, {'image': images()[0].numpy()})[0]))
    assert report.notes[0] == 'tensorrt: 4 residuals are quantized, as asked, on their ranges over the images'
    assert len(quantized_additions(path)) == 4  # attention and FFN of two blocks
    cost = float((outs[1] - outs[0]).norm() / outs[0].norm())
    assert 1e-4 < cost < 0.1
    assert type(model.stages[0].blocks[0]).__name__ == 'TwoBranchSwinBlock', 'the model stays as it was'


def test_ranges_of_residuals_need_images(tmp_path):
    with pytest.raises(ValueError, match=r'measures the ranges of residuals on images; give images'):
        export_model(
            calibrated('symmetric', **ONE_STAGE), tmp_path / 'x.onnx', 'tensorrt', SHAPE, 'backbone', residuals=True
        )
    assert not list(tmp_path.iterdir())


def test_asymmetric_grids_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"'tensorrt' cannot express .*w_symmetric=True and a_symmetric=True"):
        export_model(calibrated('RepQ'), tmp_path / 'trt.onnx', 'tensorrt', SHAPE, 'backbone')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_checker_lists_every_broken_rule():
    weight, inputs = UniformQuantizer(4, axis=0), BranchQuantizers(lambda branch: UniformQuantizer(4), two=False)
    weight.set_grid(torch.tensor(0.1), torch.tensor(8.0))
    inputs.high.set_grid(torch.tensor(0.1), torch.tensor(3.0))
    model = nn.Sequential(to_quant_linear(nn.Linear(8, 8), weight, inputs))
    lower(model, Dialect('plain'))
    found = find_target('tensorrt').violations(to_onnx(model, {'image': torch.zeros(1, 4, 8)}, ['out']))
    for rule in ('zero points other than int8 0', 'Clip between Quantize and Dequantize'):
        assert any(rule in line for line in found)


class Addition(nn.Module):
    """Quantized values of the input, added as ``kind`` says."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(8, 8)
        self.nodes = ActivationNodes(ActivationGrid(0.1, 128, 8), signed=True)

    def forward(self, x):
        product = self.linear(x)
        if self.kind == 'residual':
            return self.nodes(x) + torch.cat((product[:, :2], product[:, 2:]), dim=1).reshape(2, 2, 8)
        return self.nodes(x) + (self.nodes(product) if self.kind == 'both' else x.exp())


@pytest.mark.parametrize(
    ('kind', 'rule'), [('residual', ''), ('both', 'both inputs of the addition'), ('no product', 'what is no product')]
)
@torch.no_grad()
def test_checker_knows_which_additions_are_fused(kind, rule):
    found = find_target('tensorrt').violations(to_onnx(Addition(kind), {'image': torch.zeros(2, 2, 8)}, ['out']))
    assert len(found) == bool(rule)
    assert all(rule in line for line in found)
