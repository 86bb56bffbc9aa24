"""An integer detector in threads and processes gives the answers of one thread, and its memory stays."""

from __future__ import annotations

import json
import sys

import load
import pytest
from tiny_detector import tiny_config

QUANT = dict(method='RepQ', w_bits=8, a_bits=8, low_a_bits=4)


@pytest.fixture
def tiny(tiny_coco, tmp_path, monkeypatch) -> None:
    """A detector and images of a few kilobytes."""
    cfg = tiny_config(tiny_coco, tmp_path)
    backbone = dict(type='TwoBranchSwin', quant=QUANT, low_ratios=0.5, drop_path_rate=0.0)
    cfg.model.backbone.update(backbone)
    heads = {key: value for key, value in QUANT.items() if key != 'low_a_bits'}
    cfg.model.update(type='QuantDetector', base=cfg.model.type, detector_quant=heads)
    cfg.dump(tmp_path / 'tiny.py')
    monkeypatch.setattr(load, 'CONFIG', tmp_path / 'tiny.py')
    monkeypatch.setattr(load, 'DISTINCT', 4)


def test_threads_give_the_same_answers(tiny, tmp_path, capsys):
    path = tmp_path / 'load.json'
    load.main(['--images', '6', '--threads', '2', '--processes', '0', '--json', str(path)])
    found = json.loads(path.read_text())
    assert found['same answers']
    assert found['rows'][0]['images'] == 6
    assert 'same answers: True' in capsys.readouterr().out


def test_another_answer_is_noticed(tiny, tmp_path):
    files = load.random_detector(tmp_path)
    under_load = load.Load(*files, load.images_of(2))
    under_load.answers[1] = 'another'
    assert under_load.run(4, 1)['other answers'] == 2


def test_growth_is_of_the_last_part():
    held = [(index, 100 if index < 80 else 110) for index in range(100)]
    assert load.growth(held, 100) == {'resident MiB': 0.0, 'growth': 0.1}
    assert load.growth([(0, 2**20)], 100) == {'resident MiB': 1.0, 'growth': None}


@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='resident memory is read from /proc')
def test_hundreds_of_images_in_threads_and_processes(tiny):
    load.main(['--images', '300', '--threads', '1', '2', '4', '--processes', '2'])
