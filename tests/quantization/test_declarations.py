"""What quantizers, blocks and methods say of themselves; a new method or importance is one class."""

from __future__ import annotations

import pytest
import torch
from tiny_backbone import backbone, images, signal_to_noise

from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.quantization import FoldingBlock, Quantizer, WindowBlock
from mixaq_mmdet.quantization.methods import Method
from mixaq_mmdet.quantization.observers import MSERange
from mixaq_mmdet.quantization.roles import BRANCH_ROLES, ROLES
from mixaq_mmdet.registry import IMPORTANCE, QUANT_METHODS
from mixaq_mmdet.windows.importance import Importance


def test_every_quantizer_knows_its_role_and_branch():
    model = backbone({'method': 'RepQ', 'low_a_bits': 4})
    found = {(q.role, q.branch) for q in model.modules() if isinstance(q, Quantizer)}
    assert {role for role, _ in found} == {*ROLES} - {'head_in'}
    assert {role for role, branch in found if branch == 'low'} == {*BRANCH_ROLES}
    assert ('weight', '') in found
    for path, quantizer in model.named_modules():
        if isinstance(quantizer, Quantizer):
            assert path.endswith(f'weight_quant{quantizer.branch}' if quantizer.role == 'weight' else quantizer.branch)


def test_a_quantizer_without_a_grid_cannot_be_built():
    class Gridless(Quantizer):
        def describe(self) -> str:
            return ''

    with pytest.raises(TypeError, match='_grid'):
        Gridless(8)


def test_a_block_that_declares_windows_says_how_many_tokens():
    with pytest.raises(TypeError, match='must define folds, window_tokens'):
        type('Silent', (WindowBlock, torch.nn.Module), {})
    with pytest.raises(TypeError, match='must define folds'):
        type('Silent', (FoldingBlock, torch.nn.Module), {})


def test_a_new_method_is_one_class():
    @QUANT_METHODS.register_module()
    class Halved(Method):
        """The low branch searches its ranges, the rest takes them whole; softmax is logarithmic."""

        converts = False

        def quantizer_config(self, role):
            return {'type': 'Log2'} if role == 'attn' else super().quantizer_config(role)

        def range_finder(self, quantizer):
            return MSERange() if quantizer.branch == 'low' else super().range_finder(quantizer)

    try:
        model = backbone({'method': 'Halved', 'low_a_bits': 4}, low_ratios=0.5)
        noise = Calibrator(model).run(images())
        assert {name.rpartition('.')[2] for name in noise} == {'high', 'low'}
        with torch.no_grad():
            assert signal_to_noise(backbone()(images()[0]), model(images()[0])) > 5
    finally:
        del QUANT_METHODS.module_dict['Halved']


def test_a_new_importance_is_one_class():
    @IMPORTANCE.register_module()
    class First(Importance):
        """Windows rank in the order of the map."""

        def token_map(self, x, image_keys=None):
            return x[..., :1].float()

        def window_scores(self, tokens, real):
            return -torch.arange(tokens.shape[1], dtype=torch.float32).expand(len(tokens), -1)

    try:
        model = backbone(low_ratios=0.5, importance='First')
        with torch.no_grad(), model.record_windows() as records:
            model(images(1, (64, 64))[0])
        assert records[0].regular.order[0].tolist() == list(range(16))
    finally:
        del IMPORTANCE.module_dict['First']
