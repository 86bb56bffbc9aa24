"""Feature errors and the pilot of the low branch's learning rate, on a tiny detector."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evidence.measures import features, pilot
from evidence.plans import branch_rate
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint
from tiny_backbone import backbone

from mixaq_mmdet.engine.calibration import Calibrator

WRAPPER = {
    'type': 'SparsityAwareOptimWrapper',
    'constructor': 'SparsityAwareOptimWrapperConstructor',
    'max_ratio': 0.8,
    'step': 0.1,
}


@pytest.fixture
def start(tiny_cfg: Config, tmp_path: Path) -> SimpleNamespace:
    """A float checkpoint with the config of a quantized backbone, and how a measure gets them."""
    init_default_scope('mmdet')
    path = tmp_path / 'weights.pth'
    meta = {'dataset_meta': {'classes': ('box', 'disc', 'bar')}}
    save_checkpoint({'state_dict': MODELS.build(tiny_cfg.model).state_dict(), 'meta': meta}, str(path))
    tiny_cfg.dump(tmp_path / 'float.py')
    quant = {'method': 'OFQ', 'w_bits': 4, 'a_bits': 3, 'low_a_bits': 2}
    tiny_cfg.model.backbone.update(type='TwoBranchSwin', drop_path_rate=0.0, quant=quant)
    tiny_cfg.train_dataloader.sampler = {'type': 'InfiniteSampler'}
    tiny_cfg.optim_wrapper.update(WRAPPER)
    return SimpleNamespace(cfg=tiny_cfg, checkpoint=path, repository=tmp_path)


def adapted(start: SimpleNamespace, **settings: object) -> dict:
    settings = {
        'steps': 15, 'rate': 3e-4, 'sampling': 'uniform_sum', 'branch_lr_mult': 1, 'images': 3, 'ratios': [0.0, 0.5],
        **settings,
    }  # fmt: skip
    start.experiment = SimpleNamespace(seed=0, settings=settings)
    found = pilot.adapt(start)
    json.dumps(found['extras'], allow_nan=False)
    return found['extras']


def test_the_pilot_trains_both_branches_and_the_multiplier_moves_the_low_one(start: SimpleNamespace) -> None:
    untrained = adapted(start, steps=0)
    control = adapted(start, sampling='fixed')
    once, ten = (adapted(start, branch_lr_mult=factor) for factor in (1, 10))
    assert untrained['norms_apart'] == 0
    assert control['feature_error']['0.0']['mean'] < untrained['feature_error']['0.0']['mean']
    assert once['feature_error']['0.5']['mean'] < untrained['feature_error']['0.5']['mean']
    assert once['norms_apart'] < ten['norms_apart']
    assert once == adapted(start), 'a seed decides everything'


def test_error_of_a_model_that_rounds_nothing_is_zero(start: SimpleNamespace, tmp_path: Path) -> None:
    start.cfg.model.backbone.quant = None
    settings = {'images': 2, 'ratios': [0.0, 0.5], 'reference': ['float.py', 'weights.pth']}
    start.experiment = SimpleNamespace(settings=settings)
    found = features.error(start)
    assert found['images'] == 2
    assert found['extras']['feature_error']['0.5']['mean'] == pytest.approx(0, abs=1e-9)


def test_errors_grow_with_low_windows_and_leave_the_ratios_as_they_were() -> None:
    model = backbone({'method': 'RepQ', 'w_bits': 4, 'a_bits': 4, 'low_a_bits': 2}, low_ratios=0.3)
    images = list(torch.rand(3, 1, 3, 64, 64))
    Calibrator(model).run(images)
    reference = backbone(None)
    high, low = (features.feature_errors(model.eval(), reference.eval(), images, ratio) for ratio in (0.0, 0.8))
    assert (high < low).all()
    assert set(model.low_ratios) == {0.3}


def test_differences_are_paired_by_seed_and_image() -> None:
    """In percent of the control: what seeds and images share cancels."""
    shared = np.random.default_rng(0).uniform(1, 2, (3, 50))
    factors = {'control': 1.0, 'treatment': 0.9}

    class Reader:
        def result(self, experiment: tuple[str, int]) -> dict:
            arm, seed = experiment
            return {'extras': {'by_image': {'0.4': (factors[arm] * shared[seed]).tolist()}}}

    arms = [[(name, seed) for seed in range(3)] for name in ('treatment', 'control')]
    found = branch_rate.relative_difference(Reader(), *arms, 0.4)
    assert found.estimate == pytest.approx(-10)
    assert found.high < -9
