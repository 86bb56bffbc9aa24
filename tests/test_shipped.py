"""Shipped configs by name, from a checkout and from the layout of a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

import mixaq_mmdet
from mixaq_mmdet import shipped


def test_a_shipped_config_is_read_by_its_name():
    cfg = Config.fromfile(mixaq_mmdet.config_path('mini/mask-rcnn_swin-mini_ptq-w4a8.py'))
    assert cfg.train_cfg.type == 'PTQLoop'


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(ValueError, match=r"'mini/mask-rcnn_swin-mini_ptq-w4a8\.py'"):
        mixaq_mmdet.config_path('mini/mask-rcnn_swin-mini_ptq-w4a9.py')
    with pytest.raises(ValueError, match='no shipped config is named'):
        mixaq_mmdet.config_path('../setup.py')


def test_the_configs_of_a_wheel_come_before_those_beside_the_package(tmp_path, monkeypatch):
    package = tmp_path / 'site-packages' / 'mixaq_mmdet'
    beside = tmp_path / 'site-packages' / 'configs' / '_base_'  # of some other package
    beside.mkdir(parents=True)
    shutil.copytree(Path(shipped.configs_folder()), package / '.mim' / 'configs')
    monkeypatch.setattr(shipped, '_PACKAGE', package)
    assert Path(shipped.config_path('_base_/swin_mini.py')).is_relative_to(package)


def test_a_package_without_configs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, '_PACKAGE', tmp_path / 'mixaq_mmdet')
    with pytest.raises(ValueError, match='has no configs'):
        shipped.config_path('_base_/swin_mini.py')
