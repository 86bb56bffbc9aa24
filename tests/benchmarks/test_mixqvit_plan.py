"""The plan's arms differ in the bits of layers alone; the proxy's rank correlation is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from evidence.experiment import Experiment, resolved
from evidence.measures import layers
from evidence.plans import mixqvit
from evidence.worker import Context
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from two_branch_files import write_two_branch_files


def without_bits(experiment: Experiment) -> dict:
    cfg = resolved(experiment).to_dict()
    for name in ('overrides', 'low_ratios'):
        cfg['model']['backbone'].pop(name, None)
        cfg['model']['backbone']['quant'].pop(name, None)
        cfg.pop(name, None)
    return cfg


@pytest.mark.parametrize('claim', ['M2', 'M3', 'M6', 'M8'])
def test_arms_differ_in_the_bits_of_layers_alone(claim):
    treatment, control = mixqvit.PAIRS[claim]
    assert without_bits(treatment) == without_bits(control)
    assert resolved(treatment).model.backbone.quant.overrides
    assert treatment.starts_from == control.starts_from


def test_trained_arm_has_the_layers_bits():
    init_default_scope('mmdet')
    backbone = MODELS.build(resolved(mixqvit.TRAINED_MEAN3).model.backbone)
    expected = {override['pattern']: override for override in mixqvit.bits_of('mixqvit-mp3')}
    name = 'stages.2.blocks.0.ffn.layers.1'
    layer = backbone.get_submodule(name)
    assert layer.weight_quant.bits == expected[name]['w_bits']
    assert layer.input_quant.high.bits == expected[name]['a_bits']


def test_repeats_are_paired_by_calibration_seed():
    for claim in ('M9', 'M10'):
        for arm in mixqvit.PAIRS[claim]:
            assert [experiment.overrides.get('train_cfg.seed', 0) for experiment in arm] == [0, 1, 2]


def test_spearman_of_known_ranks():
    first = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 1.0], [3.0, 3.0, 1.0], [4.0, 4.0, 1.0]])
    second = np.array([[10.0, 4.0, 1.0], [20.0, 3.0, 2.0], [30.0, 2.0, 3.0], [99.0, 1.0, 4.0]])
    assert layers.spearman(first, second).tolist() == pytest.approx([1.0, -1.0, 0.0])


def test_proxy_measures_every_layer_and_goes_on_where_it_stopped(tiny_coco, tmp_path, monkeypatch):
    _, checkpoint = write_two_branch_files(tiny_coco, tmp_path)
    cfg = Config.fromfile(tmp_path / 'tiny.py')
    cfg.model.backbone.init_cfg = None
    monkeypatch.setattr(
        layers, 'layer_names', lambda backbone: ['stages.0.blocks.0.ffn.layers.1', 'stages.1.blocks.0.ffn.layers.0.0']
    )
    settings = {'bits': 2, 'pictures': [1, 2], 'calibration_pictures': 1, 'images': 3}
    experiment = Experiment('proxy', 'measure', measure='m:f', split=None, settings=settings)
    context = Context(experiment, cfg, checkpoint, tmp_path / 'work', tmp_path)
    found = layers.proxy(context)
    assert found['images'] == 3
    extras = found['extras']
    assert all(loss['kl'] > 0 for loss in extras['layers'].values())
    assert -1 <= extras['correlation']['low'] <= extras['correlation']['high'] <= 1
    assert set(extras['by_pictures']) == {'1', '2'}

    def fail(*args, **kwargs):
        raise AssertionError('measured again')

    monkeypatch.setattr(layers, 'evaluate', fail)
    assert layers.proxy(context) == found
