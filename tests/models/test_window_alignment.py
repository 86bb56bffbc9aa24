"""The auxiliary loss that gives windows with objects the larger score."""

from __future__ import annotations

import pytest
import torch
from mmdet.models import MaskRCNN
from mmdet.utils import register_all_modules
from mmengine.runner import Runner

from mixaq_mmdet.models.window_alignment import WindowAlignedMaskRCNN, object_coverage, ranking_loss, stage_inputs
from mixaq_mmdet.registry import MODELS


@pytest.fixture(scope='module')
def coverage():
    return torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.2, 0.9]], dtype=torch.float64)


def test_right_order_costs_nothing_and_wrong_order_its_distance(coverage):
    right = torch.tensor([[9.0, 3.0, 1.0], [1.0, 3.0, 9.0]], dtype=torch.float64)
    settings = dict(margin=0.3, temperature=0.01)
    assert ranking_loss(right, coverage, **settings) < 1e-6
    one_pair = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    wrong = torch.tensor([[1.0, torch.e]], dtype=torch.float64)
    assert ranking_loss(wrong, one_pair, **settings).item() == pytest.approx(1.3, abs=1e-6)


def test_scale_of_the_scores_does_not_matter(coverage):
    scores = torch.rand(2, 3, dtype=torch.float64) + 0.1
    assert ranking_loss(scores, coverage, 0.3, 0.1).item() == pytest.approx(
        ranking_loss(1000 * scores, coverage, 0.3, 0.1).item()
    )


def test_gradient_by_finite_differences(coverage):
    scores = (torch.rand(2, 3, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, coverage, 0.3, 0.1), (scores,))


def test_pictures_without_a_difference_have_a_finite_zero_loss():
    scores = torch.rand(2, 4, requires_grad=True)
    loss = ranking_loss(scores, torch.zeros(2, 4), 0.3, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad.abs().max() == 0


@pytest.fixture
def aligned(tiny_cfg):
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    tiny_cfg.model.type = 'WindowAlignedMaskRCNN'
    model = MODELS.build(tiny_cfg.model)
    model.init_weights()
    loader = Runner.build_dataloader(tiny_cfg.train_dataloader)
    batch = model.data_preprocessor(next(iter(loader)), True)
    return model, batch['inputs'], batch['data_samples']


def test_plain_losses_stay_and_steps_lower_the_new_one(aligned):
    model, *batch = aligned
    assert {*MaskRCNN.loss(model, *batch)} | {'loss_alignment'} == {*model.loss(*batch)}
    optimizer = torch.optim.AdamW(model.backbone.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        losses.append(model.loss(*batch)['loss_alignment'])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


def test_coverage_is_the_share_of_object_pixels(aligned):
    model, inputs, samples = aligned
    with stage_inputs(model.backbone) as streams:
        model.backbone(inputs)
    height, width = streams[0].shape[1:3]
    found = object_coverage(samples, (height, width), inputs.shape[-2:], streams[0])
    pixels = [sample.gt_instances.masks.to_ndarray().any(axis=0).sum() for sample in samples]
    share = torch.tensor(pixels, dtype=torch.float32) / inputs[0, 0].numel()
    torch.testing.assert_close(found.mean(dim=(1, 2, 3)), share)


@pytest.mark.parametrize('field', ['alignment_weight', 'alignment_temperature'])
def test_weight_and_temperature_must_be_above_zero(tiny_cfg, field):
    settings = {key: value for key, value in tiny_cfg.model.items() if key != 'type'}
    with pytest.raises(ValueError, match=field):
        WindowAlignedMaskRCNN(**settings, **{field: 0})
