"""Which versions a result says it was made with."""

from __future__ import annotations

from mixaq_mmdet.reporting import environment


def test_a_fork_is_named_with_its_version(monkeypatch):
    here = {'onedl-mmcv': '2.3.6', 'mmengine': '0.10.7', 'numpy': '2.4.6'}
    monkeypatch.setattr(environment, 'installed', lambda names: {name: here[name] for name in names if name in here})
    found = environment.versions()
    assert (found['mmcv'], found['mmengine'], found['numpy']) == ('onedl-mmcv 2.3.6', '0.10.7', '2.4.6')
    assert found['mmdet'] == 'missing'
