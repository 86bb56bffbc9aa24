"""Every shipped quantized recipe, shrunk, calibrates and predicts; those that train get gradients.

The suite takes one recipe of each detector, method and scope, with low or pruned windows where there is one; the
nightly run takes the others.
"""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from shrunk_recipe import FLOAT_RECIPES, RECIPES, batch_of, build, shrunk_recipe

from mixaq_mmdet.engine.calibration import Calibrator, uncalibrated
from mixaq_mmdet.quantization import Quantizer

QUANTIZED = sorted(set(RECIPES) - set(FLOAT_RECIPES))
_ORDERED = sorted(QUANTIZED, key=lambda name: 'mixaq' in name or 'prune' in name)  # the last of a group is taken
GROUPS = {re.sub(r'_swin-\w|-w\da\d|mixaq-|-mixaq|-prune', '', name): name for name in _ORDERED}
CASES = [
    pytest.param(name, marks=() if name in GROUPS.values() else pytest.mark.nightly, id=name.removesuffix('.py'))
    for name in QUANTIZED
]


@pytest.mark.parametrize('name', CASES)
def test_recipe_calibrates_predicts_and_trains(name):
    cfg = shrunk_recipe(name)
    if cfg.model.backbone.quant.method == 'AIQViT':
        cfg.model.backbone.quant.update(steps=2, search_steps=2)
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # an untrained classifier is sure of nothing
    model = build(cfg)
    Calibrator(model).run([batch_of(cfg, images=1)])
    assert not uncalibrated(model)
    quantizers = {path: module for path, module in model.named_modules() if isinstance(module, Quantizer)}
    assert any(not path.startswith('backbone.') for path in quantizers) == ('detector' in name)

    with torch.no_grad():
        samples = model.eval().test_step(batch_of(cfg, images=1))
    assert all(torch.isfinite(sample.pred_instances.scores).all() for sample in samples)

    wrapper = build_optim_wrapper(model.train(), cfg.optim_wrapper)
    with wrapper.optim_context(model):
        data = model.data_preprocessor(batch_of(cfg), True)
        total, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    assert torch.isfinite(total)
    learned = {id(parameter) for module in quantizers.values() for parameter in module.parameters()}
    assert bool(learned) == ('qat' in name or 'saqa' in name)
    if learned:
        wrapper.backward(total)
        gradients = [parameter.grad for parameter in model.backbone.parameters() if parameter.requires_grad]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
        decays = [
            group['weight_decay']
            for group in wrapper.optimizer.param_groups
            if any(id(parameter) in learned for parameter in group['params'])
        ]
        assert set(decays) == {0}
        # training at ratio 0 leaves a stale low branch behind, which a test with low windows must not use
        assert cfg.custom_hooks[-1].branches == 'low'
