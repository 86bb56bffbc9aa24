"""benchmarks/detector_growth.py on a tiny detector: what it varies and writes; no times are judged."""

from __future__ import annotations

import json

import detector_growth
from deploy_detector import STOCK, WHOLE
from mmengine.config import Config
from tiny_detector import tiny_mask_rcnn


def test_work_grows_and_processes_share_the_threads(tmp_path, monkeypatch):
    Config(dict(model=tiny_mask_rcnn())).dump(tmp_path / 'tiny.py')
    monkeypatch.setattr(detector_growth, 'SIZE', (64, 96))
    monkeypatch.setattr(detector_growth, 'PROPOSALS', 20)
    monkeypatch.setattr(detector_growth, 'DETECTIONS', 5)
    growth = {'proposals': (3, 10), 'detections': (2, 4), 'size': ((64, 64), (96, 64))}
    monkeypatch.setattr(detector_growth, 'GROWTH', growth)
    path = tmp_path / 'found.json'
    detector_growth.main(
        ['--config', str(tmp_path / 'tiny.py'), '--rounds', '1', '--threads', '1', '--json', str(path)]
    )
    found = json.loads(path.read_text())
    assert [row['proposals'] for row in found['growth']['proposals']] == [3, 10]
    assert [row['detections'] for row in found['growth']['detections']] == [2, 4]
    assert [row['size'] for row in found['growth']['size']] == [[64, 64], [96, 64]]
    rows = [(row['detector'], row['processes'], len(row['images per second'])) for row in found['throughput']]
    assert rows == [(STOCK, 1, 1), (WHOLE, 1, 1), (STOCK, 2, 1), (WHOLE, 2, 1)]
    assert all(row['of stock'] == 1 for row in found['throughput'] if row['detector'] == STOCK)
