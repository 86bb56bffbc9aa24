"""benchmarks/deploy_detector.py on a tiny detector: what it writes; no times are judged."""

from __future__ import annotations

import json

import deploy_detector
import pytest
from mmengine.config import Config
from tiny_detector import tiny_mask_rcnn


def test_whole_detectors_and_shapes_are_measured(tmp_path, monkeypatch, capsys):
    Config(dict(model=tiny_mask_rcnn())).dump(tmp_path / 'tiny.py')
    monkeypatch.setattr(deploy_detector, 'COCO_SIZES', [(40, 60), (60, 40)])
    monkeypatch.setattr(deploy_detector, 'padded_shape', lambda height, width: (height, width))
    monkeypatch.setattr(deploy_detector.torch, 'set_num_threads', lambda _: None)
    path = tmp_path / 'found.json'
    arguments = ['--config', str(tmp_path / 'tiny.py'), '--size', '64x96', '--rounds', '1', '--json', str(path)]
    deploy_detector.main(arguments)
    found = json.loads(path.read_text())
    assert {f'{name} {what}' for name in ('float', 'integer') for what in ('detector', 'backbone')} == set(
        found['detector']['seconds']
    )
    assert [row['shape'] for row in found['shapes']] == [[40, 60], [60, 40]]
    assert 'of it the backbone' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('size', 'shape'),
    [((480, 640), (800, 1088)), ((640, 480), (1088, 800)), ((360, 640), (768, 1344)), ((612, 612), (800, 800))],
)
def test_shapes_are_those_of_the_test_pipeline(size, shape):
    assert deploy_detector.padded_shape(*size) == shape


def test_twenty_different_shapes():
    assert len({deploy_detector.padded_shape(*size) for size in deploy_detector.COCO_SIZES}) == 20
