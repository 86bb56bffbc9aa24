"""Every shipped float recipe, shrunk, computes losses, gradients and predictions on two images of different sizes."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from shrunk_recipe import FLOAT_RECIPES, ROOT, batch_of, build, shrunk_recipe

from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin


@pytest.mark.parametrize('name', FLOAT_RECIPES)
def test_recipe_trains_and_predicts(name):
    cfg = shrunk_recipe(name)
    model = build(cfg)
    assert isinstance(model.backbone, TwoBranchSwin)

    model.train()
    data = model.data_preprocessor(batch_of(cfg), True)
    losses = model.loss(data['inputs'], data['data_samples'])
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    total.backward()
    gradients = {key: parameter.grad for key, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    assert [key for key, gradient in gradients.items() if gradient is None] == []
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())

    model.eval()
    with torch.no_grad():
        samples = model.test_step(batch_of(cfg))
    assert len(samples) == 2
    for sample in samples:
        expected = 'pred_panoptic_seg' if 'panoptic' in name else 'pred_instances'
        assert expected in sample


@pytest.mark.parametrize('name', FLOAT_RECIPES)
def test_recipe_is_a_stock_one_with_another_backbone(name):
    """Training, data and heads stay those of the base; only the import and the backbone's type are ours."""
    cfg = Config.fromfile(ROOT / 'configs/mixaq' / name)
    assert cfg.custom_imports.imports == ['mixaq_mmdet']
    assert cfg.model.backbone.type == 'TwoBranchSwin'
    assert 'quant' not in cfg.model.backbone, 'a base with quant=None makes a child that sets quant a TypeError'
    assert cfg.val_dataloader.batch_size == 1
    assert cfg.optim_wrapper.type == 'OptimWrapper'


@pytest.mark.nightly
@pytest.mark.parametrize('name', FLOAT_RECIPES)
def test_recipe_builds_at_full_size(name):
    cfg = Config.fromfile(ROOT / 'configs/mixaq' / name)
    cfg.model.backbone.init_cfg = None
    model = build(cfg)
    model.eval()
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 224, 300))
    assert [feature.shape[1] for feature in features] == [
        cfg.model.backbone.embed_dims * 2**stage for stage in cfg.model.backbone.out_indices
    ]
