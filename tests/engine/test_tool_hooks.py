"""Hooks that the tools add to a config; the host's Runner stays what it is."""

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from mixaq_mmdet.engine.command_line import add_hooks


def test_the_runner_is_mmengines_own():
    assert Runner.register_hooks.__code__.co_filename == Runner.__init__.__code__.co_filename


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        ({}, ['CostHook', 'DistillationHook']),
        ({'default_hooks': {'cost': {'type': 'CostHook'}}}, ['CostHook', 'DistillationHook']),
        ({'default_hooks': {'cost': None}}, ['DistillationHook']),
        ({'default_hooks': {'mine': {'type': 'mmengine.CostHook'}}}, ['mmengine.CostHook', 'DistillationHook']),
        ({'custom_hooks': [{'type': 'CostHook'}]}, ['DistillationHook']),
    ],
)
def test_each_is_added_once_unless_refused(config, expected):
    cfg = Config(config)
    add_hooks(cfg)
    assert [hook['type'] for hook in cfg.default_hooks.values()] == expected
