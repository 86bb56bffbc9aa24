"""The QAT configs that the pages teach train steps and offsets without weight decay, and weights with it."""

from __future__ import annotations

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from page_blocks import blocks
from tool_process import REPOSITORY

from mixaq_mmdet.quantization import Quantizer
from mixaq_mmdet.registry import MODELS


@pytest.mark.parametrize('page', ['getting-started.md', 'qat.md', 'your-own-config.md'])
def test_learned_steps_are_not_decayed(page, tmp_path):
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    for block in blocks(page):
        if block.file_name:
            (tmp_path / block.file_name).write_text(block.text)
    cfg = Config.fromfile(tmp_path / 'my_qat.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    learned = {id(parameter) for quantizer in quantizers for parameter in quantizer.parameters()}
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    decays = {id(parameter): group['weight_decay'] for group in groups for parameter in group['params']}
    assert {decays[parameter] for parameter in learned} == {0}
    qkv = model.backbone.stages[0].blocks[0].attn.w_msa.qkv
    assert decays[id(qkv.weight)] > 0
