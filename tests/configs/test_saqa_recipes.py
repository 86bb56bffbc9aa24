"""The sparsity-aware recipes: where they start, what they draw, and that their wrapper can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from shrunk_recipe import ROOT, build, shrunk_recipe

from mixaq_mmdet.engine import SparsityAwareOptimWrapper

MINI = {'saqa-w4a4': False, 'saqa-prune-w4a4': True, 'sparsevit': 'only'}
COCO = [
    f'{detector}_swin-t_{name}.py'
    for detector in ('mask-rcnn', 'cascade-mask-rcnn')
    for name in ('saqa-w4a4', 'saqa-prune-w4a4')
]


@pytest.mark.parametrize('name', MINI)
def test_mini_recipe(name):
    cfg = Config.fromfile(ROOT / f'configs/mini/mask-rcnn_swin-mini_{name}.py')
    trained = Config.fromfile(ROOT / 'configs/mini/mask-rcnn_swin-mini_qat-w4a4.py')
    # the checkpoint is the last one of the recipe that trains the uniform model, under its default work_dir
    assert Path(cfg.load_from).parts[:2] == ('work_dirs', 'mask-rcnn_swin-mini_qat-w4a4')
    assert Path(cfg.load_from).name == f'iter_{trained.train_cfg.max_iters}.pth'
    assert cfg.model == trained.model
    init_default_scope('mmdet')
    wrapper = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper)
    assert isinstance(wrapper, SparsityAwareOptimWrapper)
    assert wrapper.sampler.prune == MINI[name]
    assert wrapper.sampler.sampling == 'uniform_sum'


@pytest.mark.parametrize('name', COCO)
def test_coco_recipe(name):
    cfg = shrunk_recipe(name)
    quant = cfg.model.backbone.quant
    assert (quant.method, quant.w_bits, quant.a_bits, quant.low_a_bits) == ('OFQ', 4, 4, 2)
    wrapper = build_optim_wrapper(build(cfg), cfg.optim_wrapper)
    assert isinstance(wrapper, SparsityAwareOptimWrapper)
    assert wrapper.sampler.prune == ('prune' in name)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    assert cfg.custom_hooks[-1].branches == 'low'
