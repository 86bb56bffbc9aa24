"""Whole detectors as graphs: what mmdet predicts, in torch and in ONNX Runtime."""

import json

import numpy as np
import pytest
import torch
from export_cases import detector
from mmdet.structures import DetDataSample

from mixaq_mmdet.deploy.export import export_model
from mixaq_mmdet.deploy.export.image_input import BytesInput, FloatInput
from mixaq_mmdet.deploy.export.operators import suppress
from mixaq_mmdet.deploy.export.scopes import DetectorGraph, build_graph
from mixaq_mmdet.deploy.export.targets.openvino import openvino_core
from mixaq_mmdet.engine.calibration import Calibrator
from tools import run_onnx

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
onnxruntime = pytest.importorskip('onnxruntime')

SHAPE = (96, 128)


def image(seed=1):
    return torch.randn(1, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))


def sample():
    return DetDataSample(
        metainfo=dict(img_shape=SHAPE, ori_shape=SHAPE, scale_factor=(1.0, 1.0), batch_input_shape=SHAPE)
    )


def predicted(model, x):
    with torch.no_grad():
        return model.predict(x, [sample()], rescale=False)[0].pred_instances


@pytest.mark.parametrize('name', ['mask', 'faster', 'cascade', 'retina'])
def test_graph_predicts_what_mmdet_does(name):
    model = detector(name)
    expected = predicted(model, image())
    with torch.no_grad():
        dets, labels, *masks = DetectorGraph(FloatInput(SHAPE), model).eval()(image())
    count = len(expected)
    assert count > 3
    assert int((labels >= 0).sum()) == count
    assert torch.equal(labels[:count], expected.labels)
    torch.testing.assert_close(dets[:count, :4], expected.bboxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(dets[:count, 4], expected.scores)
    assert not dets[count:].any()
    assert bool(masks) == (name in ('mask', 'cascade'))


def order_of_same_detections(found, expected):
    """The place in ``found`` of each ``expected`` (dets, labels): scores that are nearly equal may change places."""
    (dets, labels), (wanted, wanted_labels) = found, expected
    distances = np.abs(dets[None] - wanted[:, None]).sum(-1) + 1000.0 * (labels[None] != wanted_labels[:, None])
    order = []
    for row in distances:  # the same detection may be there twice
        row[order] = np.inf
        order.append(int(row.argmin()))
    return order


def assert_same_detections(found, expected, atol=2e-2):
    """Labels, boxes with scores, and masks where there are some."""
    (dets, labels, *masks), (wanted, wanted_labels, *wanted_masks) = found, [out.numpy() for out in expected]
    order = order_of_same_detections((dets, labels), (wanted, wanted_labels))
    assert np.array_equal(labels[order], wanted_labels)
    assert (wanted_labels >= 0).sum() > 3
    np.testing.assert_allclose(dets[order], wanted, atol=atol)
    for ours, theirs in zip(masks, wanted_masks, strict=True):
        np.testing.assert_allclose(ours[order], theirs, atol=atol)


@pytest.mark.parametrize('name', ['cascade', 'retina'])
def test_onnx_runtime_keeps_the_same_boxes(name, tmp_path):
    model = detector(name)
    path = tmp_path / 'detector.onnx'
    export_model(model, path, 'onnxruntime', SHAPE, timed=False)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    graph = DetectorGraph(FloatInput(SHAPE), model).eval()
    for x in (image(1), image(2)):  # another image: another number of boxes at each level
        with torch.no_grad():
            assert_same_detections(session.run(None, {'image': x.numpy()}), graph(x))
    assert {output.name: output.shape for output in session.get_outputs()}['dets'] == [10, 5]
    assert {opset.domain for opset in onnx.load(path).opset_import} <= {'', 'ai.onnx'}


def test_bytes_are_normalised_inside_and_zero_outside_the_image():
    mean, std = [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]
    x = torch.randint(0, 256, (1, 8, 10, 3), dtype=torch.uint8)
    out, size = BytesInput((8, 10), mean, std, to_rgb=True)(x, torch.tensor([5, 7]))
    expected = (x[0].flip(-1).float() - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(out[0, :, :5, :7], expected.permute(2, 0, 1)[:, :5, :7])
    assert not out[0, :, 5:].any()
    assert not out[0, :, :, 7:].any()
    assert size.tolist() == [5, 7]


def test_bytes_and_floats_give_the_same_detections(tmp_path):
    model = detector('mask')
    path = tmp_path / 'bytes.onnx'
    export_model(model, path, 'onnxruntime', SHAPE, as_bytes=True, timed=False)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    graph = DetectorGraph(FloatInput(SHAPE), model).eval()
    for seed in (3, 4):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (1, *SHAPE, 3), generator=generator, dtype=torch.uint8)
        found = session.run(None, {'image': pixels.numpy(), 'size': np.array(SHAPE, np.int64)})
        x = model.data_preprocessor({'inputs': [pixels[0].permute(2, 0, 1)]}, False)['inputs']
        with torch.no_grad():
            assert_same_detections(found, graph(x))
    facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts['input'] == 'bytes'
    assert json.loads(facts['mean']) == pytest.approx(model.data_preprocessor.mean.flatten().tolist())


@torch.no_grad()
def test_openvino_finds_what_the_simulated_detector_finds(tmp_path):
    """In float beside the integers: bfloat16, which OpenVINO takes on CPUs that have it, moves boxes.

    Where int8 products saturate (no VNNI), the integers are multiplied in float too, as tools/run_onnx.py does there.
    """
    pytest.importorskip('openvino')
    model = detector('mask', quant={'method': 'MinMax', 'w_bits': 8, 'a_bits': 8, 'w_symmetric': True})
    data = model.data_preprocessor({'inputs': [image(1)[0]], 'data_samples': [sample()]}, False)
    Calibrator(model).run([data])
    path = tmp_path / 'detector.onnx'
    report = export_model(model, path, 'openvino', SHAPE, timed=False)
    assert sum(report.census.int8.values()) > 30
    assert not report.mostly_float
    core = openvino_core()
    options = {} if report.saturation.exact_here else run_onnx.IN_FLOAT
    compiled = core.compile_model(core.read_model(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32', **options})
    found = list(compiled({'image': image(1).numpy()}).values())
    assert_same_detections(found, DetectorGraph(FloatInput(SHAPE), model).eval()(image(1)), atol=1.0)


def test_suppression_takes_the_best_of_all_groups_and_fills_up():
    boxes = torch.tensor([[[0, 0, 10, 10], [1, 0, 11, 10.0], [20, 20, 30, 30]]] * 2)
    scores = torch.tensor([[0.9, 0.8, 0.3], [0.5, 0.95, 0.01]])
    rows = suppress(boxes, scores, 0.5, 0.05, 5)
    assert rows.tolist() == [[1, 1], [0, 0], [0, 2], [-1, -1], [-1, -1]]


def test_scopes_say_what_they_export():
    model = detector('mask')
    assert build_graph(model, 'neck', FloatInput(SHAPE)).output_names() == ['p2', 'p3', 'p4']
    assert build_graph(model, 'backbone', FloatInput(SHAPE)).output_names() == ['c2', 'c3']
    model.roi_head.bbox_head.bbox_coder = object()
    with pytest.raises(ValueError, match='bbox_coder=object does not export'):
        build_graph(model, 'detector', FloatInput(SHAPE))
    model.rpn_head = torch.nn.Identity()
    with pytest.raises(ValueError, match=r'MaskRCNN exports with scope="neck" or "backbone"'):
        build_graph(model, 'detector', FloatInput(SHAPE))
