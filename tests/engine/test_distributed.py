"""Start of a distributed run: what setup_distributed asks of the environment and tells the config."""

from __future__ import annotations

import os
import sys

import pytest
import torch.distributed
from mmengine.config import Config

from mixaq_mmdet.engine import distributed
from mixaq_mmdet.engine.distributed import setup_distributed

PLACES = [name for names in distributed._PLACE_VARIABLES.values() for name in names]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No launcher's variables, and none left behind; no group is really opened."""
    for name in (*PLACES, 'MASTER_ADDR', 'MASTER_PORT', 'SLURM_NODELIST'):
        monkeypatch.setenv(name, '')  # so that monkeypatch restores what the code under test sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(distributed.atexit, 'register', lambda function: None)


@pytest.fixture
def opened(monkeypatch) -> list:
    """What init_process_group was called with."""
    calls = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


def test_one_process_changes_nothing(opened):
    cfg = Config({'model': {}})
    setup_distributed(cfg, 'none')
    assert cfg.launcher == 'none'
    assert 'model_wrapper_cfg' not in cfg
    assert not opened


def test_cpu_ranks_open_gloo(opened, monkeypatch):
    for name in PLACES[:3]:
        monkeypatch.setenv(name, '0')
    cfg = Config({'find_unused_parameters': True, 'env_cfg': {'dist_cfg': {'backend': 'nccl', 'timeout': 60}}})
    setup_distributed(cfg, 'pytorch')
    (args, kwargs) = opened[0]
    assert args == ('gloo',)
    assert kwargs['timeout'].total_seconds() == 60
    wrapper = cfg.model_wrapper_cfg
    assert (wrapper.device_ids, wrapper.broadcast_buffers, wrapper.find_unused_parameters) == (None, False, True)


def test_own_wrapper_settings_survive(opened, monkeypatch):
    for name in PLACES[:3]:
        monkeypatch.setenv(name, '0')
    cfg = Config({'model_wrapper_cfg': {'type': 'MMDistributedDataParallel', 'static_graph': True, 'device_ids': [0]}})
    setup_distributed(cfg, 'pytorch')
    assert cfg.model_wrapper_cfg.static_graph is True
    assert cfg.model_wrapper_cfg.device_ids is None


def test_accelerators_are_left_to_mmengine(opened, monkeypatch):
    for name in PLACES[:3]:
        monkeypatch.setenv(name, '0')
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    cfg = Config({})
    setup_distributed(cfg, 'pytorch')
    assert cfg.launcher == 'pytorch'
    assert 'model_wrapper_cfg' not in cfg
    assert not opened


@pytest.mark.parametrize(
    ('launcher', 'place'),
    [
        ('mpi', {'OMPI_COMM_WORLD_RANK': '3', 'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_LOCAL_RANK': '1'}),
        ('slurm', {'SLURM_PROCID': '3', 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '1', 'MASTER_ADDR': 'node-0'}),
    ],
)
def test_other_launchers_are_translated(opened, monkeypatch, launcher, place):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    setup_distributed(Config({}), launcher)
    assert [os.environ[name] for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')] == ['3', '4', '1']
    assert os.environ['MASTER_ADDR'] == place.get('MASTER_ADDR', '127.0.0.1')
    assert os.environ['MASTER_PORT'] == '29500'


def test_slurm_host_comes_from_scontrol(opened, monkeypatch, tmp_path):
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\necho node-7\necho node-8\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'):
        monkeypatch.setenv(name, '0')
    setup_distributed(Config({}), 'slurm')
    assert os.environ['MASTER_ADDR'] == 'node-7'


@pytest.mark.skipif(sys.platform == 'win32', reason='PATH without scontrol is set up the POSIX way')
def test_slurm_host_that_nobody_knows(opened, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'):
        monkeypatch.setenv(name, '0')
    with pytest.raises(ValueError, match='export MASTER_ADDR'):
        setup_distributed(Config({}), 'slurm')


@pytest.mark.parametrize(
    ('launcher', 'message'),
    [
        ('pytorch', r"'pytorch' needs the environment variable RANK.*tools/dist_train.sh"),
        ('slurm', r'SLURM_PROCID.*tools/slurm_train.sh'),
        ('horovod', r"'horovod' is unknown; use one of"),
    ],
)
def test_launcher_that_did_not_launch(launcher, message):
    with pytest.raises(ValueError, match=message):
        setup_distributed(Config({}), launcher)
