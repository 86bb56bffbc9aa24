"""benchmarks/deploy_detector.py on a tiny detector: what it writes and prints; no times are judged."""

from __future__ import annotations

import json
import re

import deploy_detector
import pytest
import torch
from deploy_detector import BACKBONE, BF16, COMPILED, HALF, STOCK, WHOLE
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tiny_detector import tiny_mask_rcnn, two_stages


@pytest.mark.parametrize('quick', [False, True])
def test_whole_detectors_are_measured(quick, tmp_path, monkeypatch, capsys):
    Config(dict(model=two_stages(tiny_mask_rcnn()))).dump(tmp_path / 'tiny.py')
    monkeypatch.setattr(deploy_detector, 'COCO_SIZES', [(40, 60), (60, 40)])
    monkeypatch.setattr(deploy_detector, 'padded_shape', lambda height, width: (height, width))
    monkeypatch.setattr(deploy_detector, 'EXPORTED', ('onnxruntime',))
    monkeypatch.setattr(deploy_detector.torch, 'set_num_threads', lambda _: None)
    monkeypatch.setattr(deploy_detector.torch, 'compile', lambda work, dynamic: work)  # takes a minute
    path = tmp_path / 'found.json'
    arguments = ['--config', str(tmp_path / 'tiny.py'), '--size', '64x96', '--rounds', '1', '--json', str(path)]
    deploy_detector.main([*arguments, *(['--quick'] if quick else [])])
    found = json.loads(path.read_text())
    rivals = set() if quick else {BACKBONE, HALF, BF16, COMPILED, 'exported, onnxruntime'}
    assert set(found['seconds']['model only']) == {STOCK, WHOLE, *rivals}
    assert path.with_suffix('.png').stat().st_size > 1000
    assert set(found['seconds']['file to masks']) == {STOCK, WHOLE}
    assert set(found['parts'][STOCK]) == set(found['parts'][WHOLE]) >= {'neck', 'masks, pasting', 'RPN, NMS'}
    assert [row['shape'] for row in found['shapes']] == ([] if quick else [[40, 60], [60, 40]])
    last = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r'whole detector: \d+\.\d\dx stock mmdet float', last[0])
    assert re.fullmatch(r'file to masks: \d+\.\d\dx', last[1])


def test_rivals_are_rows_beside_the_others(tmp_path, monkeypatch):
    Config(dict(model=two_stages(tiny_mask_rcnn()))).dump(tmp_path / 'tiny.py')
    monkeypatch.setattr(deploy_detector.torch, 'set_num_threads', lambda _: None)
    monkeypatch.setattr(
        deploy_detector, 'rivals', lambda plain, size, folder: {'NNCF int8, openvino': plain.extract_feat}
    )
    path = tmp_path / 'found.json'
    files = ['--config', str(tmp_path / 'tiny.py'), '--json', str(path)]
    deploy_detector.main([*files, '--size', '64x96', '--rounds', '1', '--quick', '--rivals'])
    assert set(json.loads(path.read_text())['seconds']['model only']) == {STOCK, WHOLE, 'NNCF int8, openvino'}


def test_rivals_are_the_float_detector_in_their_own_int8(tmp_path):
    for package in ('onnxscript', 'onnxruntime', 'openvino', 'nncf'):
        pytest.importorskip(package)
    import onnx

    config = two_stages(tiny_mask_rcnn())
    with DefaultScope.overwrite_default_scope('mmdet'):
        plain = MODELS.build(config).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        works = deploy_detector.rivals(plain, (64, 96), tmp_path)
        found = {name: work(images) for name, work in works.items()}
    others = {'static int8, onnxruntime', 'NNCF int8, openvino'}
    assert set(found) == {'float, onnxruntime', 'float, openvino', 'bf16, openvino'} | others
    for dets, labels, masks in found.values():
        assert [tuple(x.shape) for x in (dets, labels, masks)] == [(10, 5), (10,), (10, 28, 28)]
        assert (labels >= 0).all(), 'random heads find as many objects as there may be'
    static = {node.op_type for node in onnx.load(tmp_path / 'static_int8.onnx').graph.node}
    assert {'QuantizeLinear', 'DequantizeLinear'} <= static


@pytest.mark.parametrize(
    ('size', 'shape'),
    [((480, 640), (800, 1088)), ((640, 480), (1088, 800)), ((360, 640), (768, 1344)), ((612, 612), (800, 800))],
)
def test_shapes_are_those_of_the_test_pipeline(size, shape):
    assert deploy_detector.padded_shape(*size) == shape


def test_twenty_different_shapes():
    assert len({deploy_detector.padded_shape(*size) for size in deploy_detector.COCO_SIZES}) == 20
