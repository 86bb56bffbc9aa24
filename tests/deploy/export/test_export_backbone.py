"""Exported backbones compute in ONNX Runtime what they compute in torch."""

import json

import numpy as np
import pytest
import torch
from export_cases import ONE_STAGE, SHAPE, calibrated
from tiny_backbone import backbone, images

from mixaq_mmdet.deploy.export import export_model
from mixaq_mmdet.deploy.export.graph import save, to_onnx
from mixaq_mmdet.deploy.export.lowering import Dialect, lower
from mixaq_mmdet.quantization import NotCalibratedError
from mixaq_mmdet.quantization.layers import QuantWeight
from tools import run_onnx

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')


def run(path, x, **options):
    settings = onnxruntime.SessionOptions()
    for name, value in options.items():
        setattr(settings, name, value)
    session = onnxruntime.InferenceSession(str(path), settings, providers=['CPUExecutionProvider'])
    return session.run(None, {'image': x.numpy()})


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        assert np.linalg.norm(a - b.numpy()) <= tolerance * float(b.norm())


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    """(file for ONNX Runtime, its report, model): RepQ, windows in every tier, on padded maps."""
    path = tmp_path_factory.mktemp('export') / 'mixed.onnx'
    model = calibrated('RepQ')
    return path, export_model(model, path, 'onnxruntime', SHAPE, 'backbone', images(), timed=False), model


@torch.no_grad()
def test_float_backbone_is_exact_for_any_image(tmp_path):
    model = backbone(low_ratios=0.4, prune_ratios=0.2)
    export_model(model, tmp_path / 'float.onnx', 'onnxruntime', SHAPE, 'backbone', timed=False)
    for x in images():  # other images than the traced one: windows are ranked anew
        assert_close(run(tmp_path / 'float.onnx', x), model(x), 1e-5)


def test_every_linear_layer_becomes_an_integer_kernel(mixed):
    path, report, model = mixed
    layers = [module for module in model.modules() if isinstance(module, QuantWeight)]
    gemms = [node for node in onnx.load(path).graph.node if node.op_type == 'Gemm']
    assert len(gemms) > len(layers), 'each branch has products of its own'
    assert report.census.int8 == {'QGemm': len(gemms)}
    assert set(report.census.in_float) == {'MatMul'}
    assert not report.mostly_float


def test_report_says_what_was_dropped_and_is_written(mixed):
    path, report, _ = mixed
    assert 'onnxruntime: no integer kernels for attn, k, q, v; their grids are dropped' in str(report)
    assert max(report.errors['c3']) < 0.05
    written = json.loads(path.with_suffix('.json').read_text())
    assert written['census']['int8'] == report.census.int8
    assert written['size'] == path.stat().st_size
    assert path.with_suffix('.md').read_text().startswith('# ')


def test_file_describes_itself_and_nothing_of_this_machine(mixed):
    path, _, model = mixed
    loaded = onnx.load(path)
    facts = {entry.key: entry.value for entry in loaded.metadata_props}
    assert json.loads(facts['shape']) == list(SHAPE)
    assert json.loads(facts['bits']) == {'method': 'RepQ', 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4}
    assert json.loads(facts['low_ratios']) == list(model.low_ratios)
    assert [sum(tiers) for tiers in json.loads(facts['windows'])]
    assert {opset.domain for opset in loaded.opset_import} <= {'', 'ai.onnx'}
    assert b'site-packages' not in path.read_bytes()


@pytest.mark.parametrize('name', ['RepQ', 'asymmetric 8 bits'])
@torch.no_grad()
def test_plain_quantization_nodes_are_exact(name, tmp_path):
    """Q, Clip and DQ in float: roundings fall as in the simulated model, but for a tie that a CPU's sums decide."""
    model = calibrated(name)
    for block in (block for stage in model.stages for block in stage.blocks):
        block.attn.w_msa.query_key = block.attn.w_msa.attention_value = None
    expected = [model(x) for x in images()]
    lower(model, Dialect('plain'))
    save(to_onnx(model, {'image': images()[0]}, ['c2', 'c3']), tmp_path / 'plain.onnx')
    # as written: ONNX Runtime 1.23, the last one for Python 3.10, gives an output the wrong type when it merges nodes
    as_written = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for x, outs in zip(images(), expected, strict=True):
        assert_close(run(tmp_path / 'plain.onnx', x, graph_optimization_level=as_written), outs, 1e-3)


@torch.no_grad()
def test_learned_offsets_are_folded(tmp_path):
    model = calibrated('LSQ')
    report = export_model(model, tmp_path / 'lsq.onnx', 'onnxruntime', SHAPE, 'backbone', images(), timed=False)
    assert report.census.int8_share > 0.7
    assert max(report.errors['c3']) < 0.2  # four bits on random weights: roundings amplify


def test_a_step_for_each_token_is_refused_by_name_and_emulated_when_asked(tmp_path):
    model = calibrated('OFQ')
    with pytest.raises(ValueError, match=r"'onnxruntime' cannot express .* a step for each token .*emulate=\["):
        export_model(model, tmp_path / 'ofq.onnx', 'onnxruntime', SHAPE, 'backbone')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_emulated_grids_are_float_operations(tmp_path):
    model = calibrated('OFQ', prune_ratios=0.0, **ONE_STAGE)
    roles = ['patch_in', 'qkv_in', 'proj_in', 'fc1_in', 'fc2_in']
    report = export_model(
        model, tmp_path / 'ofq.onnx', 'onnxruntime', SHAPE, 'backbone', images(), emulate=roles, timed=False
    )
    assert 'emulated in float, as asked' in str(report)
    assert max(report.errors['c2']) < 1e-2
    assert report.census.int8_share < 0.5


@torch.no_grad()
def test_int8_weights_compute_the_same_where_products_are_exact(tmp_path, monkeypatch):
    model = calibrated('asymmetric 8 bits', **ONE_STAGE)
    files = {weights: tmp_path / f'{weights}.onnx' for weights in ('uint8', 'int8')}
    for weights, path in files.items():
        options = {'int8_weights': weights == 'int8', 'timed': False}
        report = export_model(model, path, 'onnxruntime', SHAPE, 'backbone', images(), **options)
        assert set(report.census.int8) == {'QGemm'}
    assert report.saturation.beyond > 10
    assert 'Without --int8-weights no file for it does' in str(report)
    monkeypatch.setattr(run_onnx, '_has_vnni', lambda: False)
    with pytest.raises(ValueError, match='export without --int8-weights'):
        run_onnx.load(files['int8'])
    if report.saturation.exact_here:
        for found, expected in zip(*(run(path, images()[0]) for path in files.values()), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'target': 'openvino', 'int8_weights': True}, r'int8_weights=True is for target="onnxruntime"; openvino has'),
        ({'any_cpu': True, 'int8_weights': True}, r'any_cpu=True forbids that; choose one'),
        ({'residuals': True}, r'residuals=True is for target="tensorrt"; onnxruntime fuses no'),
        ({'target': 'tensorrt', 'residuals': True}, r'residuals=True needs a quantized model'),
        ({'target': 'coreml'}, r"target='coreml' is unknown"),
        ({'scope': 'head'}, r"scope='head' is unknown"),
        ({'scope': 'detector'}, r"scope='detector' needs a detector"),
        ({'shape': (50,)}, r'shape=\(50,\) must be two whole numbers'),
        ({'shape': (50, 0)}, r'must be two whole numbers'),
        ({'opset': 11}, r'opset=11 is not supported'),
        ({'opset': 20}, r'opset=20 is not supported; export writes opset 21'),
        ({'emulate': ['queries']}, r"emulate=\['queries'\] are no roles; use some of"),
        ({'as_bytes': True}, r'bytes need a detector'),
        ({'images': [torch.zeros(1, 3, 90, 90)]}, r'an image of 90x90 does not fit'),
    ],
    ids=str,
)
def test_bad_input_is_named_and_leaves_nothing(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(
            backbone(), tmp_path / 'x.onnx', **{'shape': SHAPE, 'scope': 'backbone', 'timed': False, **options}
        )
    assert not list(tmp_path.iterdir())


def test_unwritable_paths_and_uncalibrated_models_are_named(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot be written'):
        export_model(backbone(), tmp_path / 'file' / 'x.onnx', shape=SHAPE, scope='backbone')
    with pytest.raises(ValueError, match=r'must end in \.onnx'):
        export_model(backbone(), tmp_path / 'x.pt', shape=SHAPE, scope='backbone')
    with pytest.raises(NotCalibratedError):
        export_model(backbone({'method': 'RepQ'}), tmp_path / 'x.onnx', shape=SHAPE, scope='backbone')
    monkeypatch.setattr('mixaq_mmdet.deploy.export.graph.find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'export needs onnx, onnxscript.*pip install "mixaq_mmdet\[export\]"'):
        export_model(backbone(), tmp_path / 'x.onnx', shape=SHAPE, scope='backbone')
