"""CPUs without VNNI saturate products of uint8 and int8 codes: exported files avoid them, or say so."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mixaq_mmdet.deploy.export.graph import save, to_onnx
from mixaq_mmdet.deploy.export.lowering import lower
from mixaq_mmdet.deploy.export.metadata import add_metadata
from mixaq_mmdet.deploy.export.parity import ParityReport
from mixaq_mmdet.deploy.export.saturation import Saturation, asked, largest_pair, of_file, products_are_exact
from mixaq_mmdet.deploy.export.targets import Census, find_target
from mixaq_mmdet.quantization.layers import BranchQuantizers, to_quant_linear
from mixaq_mmdet.quantization.quantizers.uniform import UniformQuantizer
from tools import run_onnx

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
ROWS, WIDTH = 8, 64
X = torch.full((ROWS, WIDTH), 255.0)


def layer(bits=8, zero_point=128, value=127):
    """A linear layer whose products are as large as they get, on grids of step 1."""
    linear = nn.Linear(WIDTH, ROWS)
    nn.init.constant_(linear.weight, value)
    nn.init.zeros_(linear.bias)
    weight = UniformQuantizer(bits, axis=0)
    weight.set_grid(torch.tensor(1.0), torch.tensor(float(zero_point)))
    inputs = BranchQuantizers(lambda branch: UniformQuantizer(8), two=False)
    inputs.high.set_grid(torch.tensor(1.0), torch.tensor(0.0))
    return nn.Sequential(to_quant_linear(linear, weight, inputs)).eval()


def exported(path, dialect, **grid):
    """(what of the products of the file can saturate, what the layer computes)."""
    model = layer(**grid)
    with torch.no_grad():
        expected = model(X).numpy()
        lower(model, dialect)
    proto = to_onnx(model, {'image': X}, ['out'])
    found = of_file(proto)
    add_metadata(proto, products_beyond_16_bits=found.beyond)
    save(proto, path)
    return found, expected


@pytest.fixture(scope='module')
def saturating():
    """OpenVINO's target, on a CPU where it saturates."""
    pytest.importorskip('openvino')
    target = find_target('openvino')
    if products_are_exact(target.session):
        pytest.skip('int8 products are exact on this CPU (VNNI), so that saturation cannot be shown')
    return target


def test_files_for_onnx_runtime_have_uint8_weights_and_are_exact_on_any_cpu(tmp_path):
    target, path = find_target('onnxruntime'), tmp_path / 'x.onnx'
    found, expected = exported(path, target.dialect)
    assert np.array_equal(target.session(path)({'image': X.numpy()})[0], expected)
    assert target.census(path).int8 == {'QGemm': 1}
    assert asked(found, target.session, unsigned_weights=True) == Saturation(1, 0, True)
    assert onnx.TensorProto.INT8 not in {tensor.data_type for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ('grid', 'beyond'),
    [({}, 1), ({'bits': 4, 'zero_point': 8, 'value': 7}, 0), ({'zero_point': 100, 'value': 150}, 0)],
    ids=['8 bits', '4 bits', 'zero points, which OpenVINO computes in float'],
)
def test_products_that_can_saturate_are_counted_from_their_codes(grid, beyond, tmp_path):
    dialect = find_target('openvino').dialect
    assert exported(tmp_path / 'x.onnx', dialect, **grid)[0] == Saturation(1, beyond)
    assert exported(tmp_path / 'x.onnx', dialect.on_any_cpu(), **grid)[0] == Saturation(1, 0)


def test_openvino_saturates_without_vnni_and_is_exact_with_any_cpu(saturating, tmp_path):
    path = tmp_path / 'x.onnx'
    found, expected = exported(path, saturating.dialect)
    assert not np.array_equal(saturating.session(path)({'image': X.numpy()})[0], expected)
    assert asked(found, saturating.session, unsigned_weights=False).wrong
    run, _ = run_onnx._load_openvino(path)
    assert np.array_equal(run({'image': X.numpy()})[0], expected), 'the program without torch avoids it by itself'
    exported(path, saturating.dialect.on_any_cpu())
    assert np.array_equal(saturating.session(path)({'image': X.numpy()})[0], expected)


def test_float_heads_are_no_fallback_of_the_runtime():
    census = Census({'QGemm': 10}, {'Conv': 30}, int8_macs=10, float_macs=90)
    facts = {'bits': {'w_bits': 8}}
    report = ParityReport('x.onnx', 'onnxruntime', 'detector', (50, 67), census=census, facts=facts)
    report.saturation = Saturation(10, 0, True)
    assert not report.failed
    report.saturation = Saturation(25, 0, True)
    assert report.failed
    assert 'onnxruntime computes most of the quantized products in float' in str(report)


def test_reach_takes_the_two_largest_codes_of_one_sign():
    assert largest_pair(np.array([[127, 1, -100, -2], [3, 4, 0, 0]], np.int8)) == 128
    assert largest_pair(np.array([[127, -128, 0]], np.int8)) == 128
    assert find_target('tensorrt').dialect.on_any_cpu() is find_target('tensorrt').dialect


def test_wrong_products_fail_a_strict_export_and_name_the_way_out():
    wrong = Saturation(40, 12, False)
    report = ParityReport('x.onnx', 'openvino', 'backbone', (50, 67), saturation=wrong)
    assert report.failed
    assert 'this CPU saturates int8 products in openvino' in str(report)
    assert '--any-cpu' in str(report)
    report.saturation = replace(wrong, exact_here=True)
    assert not report.failed
    assert '12 of 40 quantized products exceed 16 bits' in str(report)
    assert report.as_dict()['saturation'] == {'total': 40, 'beyond': 12, 'exact_here': True}
    assert asked(Saturation(3, 0), lambda path: pytest.fail('nothing to ask'), unsigned_weights=False).line('x')
