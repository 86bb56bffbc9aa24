"""Arguments of hooks, loops and wrappers that are unknown or of the wrong kind are ValueErrors that name them."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS, LOOPS
from torch import nn

from mixaq_mmdet.engine import CalibrationHook, SparsityAwareOptimWrapper

OPTIMIZER = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (
            {'type': 'CalibrationHook', 'num_image': 3},
            "CalibrationHook does not know ['num_image']; its arguments are ['num_images', 'seed', 'branches']",
        ),
        ({'type': 'WindowMapHook', 'every': 3}, "does not know ['every']; its arguments are ['interval', 'dpi']"),
        ({'type': 'CalibrationHook', 'num_images': True}, 'num_images=True must be a whole number of at least 1'),
        ({'type': 'CalibrationHook', 'num_images': '8'}, "num_images='8'"),
        ({'type': 'CalibrationHook', 'seed': 'a'}, "seed='a' must be a whole number of at least 0"),
        ({'type': 'CalibrationHook', 'seed': None}, 'seed=None'),
        ({'type': 'WindowMapHook', 'interval': 'a'}, "WindowMapHook: interval='a' must be a whole number"),
        ({'type': 'WindowMapHook', 'interval': True}, 'WindowMapHook: interval=True'),
        ({'type': 'WindowMapHook', 'dpi': 'a'}, "WindowMapHook: dpi='a' must be at least 1"),
    ],
)
def test_hooks(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        HOOKS.build(config)


@pytest.mark.parametrize(
    ('train_cfg', 'message'),
    [
        (
            {'max_epochs': 12, 'val_interval': 1},
            r"PTQLoop does not know \['max_epochs', 'val_interval'\]; its arguments are \['num_images', 'seed'\];.*"
            r"train_cfg=dict\(_delete_=True, type='PTQLoop'",
        ),
        ({'seed': None}, 'seed=None must be'),
        ({'num_images': True}, 'num_images=True must be'),
    ],
)
def test_loop(tiny_cfg, train_cfg, message):
    runner = SimpleNamespace(hooks=[], cfg=tiny_cfg)
    with pytest.raises(ValueError, match=message):
        LOOPS.build({'type': 'PTQLoop', **train_cfg}, default_args={'runner': runner, 'dataloader': {}})


@pytest.mark.parametrize('unknown', ['max_ratios', 'maxratio', 'loss_scale'])
def test_wrapper(unknown):
    known = "'max_ratio', 'step', 'sampling', 'seed', 'prune', 'optimizer', 'accumulative_counts', 'clip_grad'"
    with pytest.raises(ValueError, match=re.escape(f'does not know {[unknown]}; its arguments are [{known}]')):
        SparsityAwareOptimWrapper(OPTIMIZER, **{unknown: 0.5})


def test_arguments_of_the_stock_wrapper_reach_it():
    wrapper = SparsityAwareOptimWrapper(optimizer=OPTIMIZER, accumulative_counts=2, clip_grad={'max_norm': 1.0})
    assert wrapper._accumulative_counts == 2
    assert wrapper.clip_grad_kwargs == {'max_norm': 1.0}


def test_a_class_that_builds_on_ours_may_have_arguments_of_its_own():
    class Quiet(CalibrationHook):
        def __init__(self, quiet: bool = True) -> None:
            super().__init__(num_images=3)

    assert Quiet(quiet=False).num_images == 3
