"""mmpretrain's ImageClassifier on TwoBranchSwin: found from both scopes, equal to mmpretrain's Swin, trainable."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from swin_dialects import MicrosoftSwin, randomise

import mixaq_mmdet  # noqa: F401  (lets mmpretrain import beside a torchvision that cannot load)
from mixaq_mmdet.models.two_branch_swin import TwoBranchSwin
from mixaq_mmdet.registry import MODELS

try:
    from mmpretrain.models import ImageClassifier, SwinTransformer
    from mmpretrain.structures import DataSample
except ImportError as error:
    pytest.skip(f'mmpretrain cannot be imported: {error}', allow_module_level=True)

ROOT = Path(__file__).resolve().parents[1]
GEOMETRY = dict(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))


@pytest.fixture(autouse=True)
def scope():
    """Leave no default scope behind: the other tests are mmdet's."""
    before = DefaultScope.get_current_instance()
    yield
    init_default_scope(before.scope_name if before else 'mmdet')


@pytest.fixture
def recipe() -> Config:
    """The shipped ImageNet recipe with a tiny backbone and five classes."""
    cfg = Config.fromfile(ROOT / 'configs/classification/swin-tiny_float_in1k.py')
    cfg.merge_from_dict({'model.backbone': GEOMETRY, 'model.head': dict(in_channels=64, num_classes=5)})
    cfg.model.train_cfg.augments = None  # Mixup and CutMix draw with numpy's global generator
    cfg.data_preprocessor.num_classes = 5
    return cfg


def build(cfg: Config) -> ImageClassifier:
    init_default_scope(cfg.default_scope)
    return MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor})


@pytest.mark.parametrize('scope_name', ['mmdet', 'mmpretrain'])
def test_both_scopes_find_the_backbone(scope_name):
    init_default_scope(scope_name)
    registry = importlib.import_module(f'{scope_name}.registry').MODELS
    assert isinstance(registry.build(dict(type='TwoBranchSwin', **GEOMETRY)), TwoBranchSwin)


def test_equals_the_swin_of_mmpretrain_at_its_size():
    """At 224 pixels one window covers the last map, where mmpretrain does not shift and mmdet does."""
    arch = {key: list(value) if isinstance(value, tuple) else value for key, value in GEOMETRY.items()}
    theirs = randomise(SwinTransformer(arch=arch, out_indices=(0, 1, 2, 3)))
    images = torch.randn(2, 3, 224, 224)
    for unshifted, same in (((3,), True), ((), False)):
        ours = TwoBranchSwin(**GEOMETRY, unshifted_stages=unshifted)
        ours.load_state_dict(theirs.state_dict())
        ours.eval()
        features = zip(ours(images), theirs(images), strict=True)
        assert all(torch.allclose(left, right, rtol=1e-4, atol=1e-5) for left, right in features) is same


def test_a_converted_microsoft_classifier_gives_its_scores(recipe, tmp_path):
    classifier = randomise(MicrosoftSwin(dim=8, depths=(2, 2, 2, 2), window=7))
    torch.save(dict(model=classifier.state_dict()), tmp_path / 'src.pth')
    recipe.dump(tmp_path / 'recipe.py')
    main = runpy.run_path(str(ROOT / 'tools/convert_checkpoint.py'))['main']
    main([str(tmp_path / 'src.pth'), str(tmp_path / 'dst.pth'), '--config', str(tmp_path / 'recipe.py')])
    model = build(recipe)
    load_checkpoint(model, str(tmp_path / 'dst.pth'), strict=True)
    model.eval()
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(model(images, mode='tensor'), classifier(images).detach(), rtol=1e-4, atol=1e-4)


def test_recipe_computes_losses_gradients_and_predictions(recipe):
    model = build(recipe)
    model.init_weights()
    model.train()
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8) for _ in range(2)],
        data_samples=[DataSample().set_gt_label(label) for label in (1, 4)],
    )
    data = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    model.eval()
    assert [tuple(sample.pred_score.shape) for sample in model.val_step(batch)] == [(5,), (5,)]


def test_recipe_trains_and_tests_in_a_runner(recipe, tmp_path):
    for label in range(2):
        folder = tmp_path / 'images' / f'class{label}'
        folder.mkdir(parents=True)
        for number in range(2):
            picture = np.random.default_rng(number).integers(0, 256, (230, 240, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / f'{number}.png'), picture)
    for loader in (recipe.train_dataloader, recipe.val_dataloader, recipe.test_dataloader):
        pipeline = loader.dataset.pipeline
        loader.dataset = dict(type='CustomDataset', data_root=str(tmp_path / 'images'), pipeline=pipeline)
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    recipe.train_cfg.max_epochs = 1
    recipe.param_scheduler = []  # the warm-up alone takes 20 epochs
    recipe.work_dir = str(tmp_path / 'work_dir')
    runner = Runner.from_cfg(recipe)
    runner.train()
    assert (tmp_path / 'work_dir/epoch_1.pth').exists()
    assert 0 <= runner.test()['accuracy/top1'] <= 100
