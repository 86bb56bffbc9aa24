"""Backbones of detectors other than Mask R-CNN convert: those of the stock configs, shrunk to heads of 16 channels."""

from __future__ import annotations

import pytest
import torch
from integer_twin import relative_error
from mmengine.config import Config
from tiny_detector import stock_config
from tool_process import REPOSITORY

from mixaq_mmdet.deploy import IntegerSwin
from mixaq_mmdet.deploy.convert import convert_backbone
from mixaq_mmdet.deploy.kernels import load
from mixaq_mmdet.engine.calibration import Calibrator
from mixaq_mmdet.models import TwoBranchSwin

SHRUNK = {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8), 'drop_path_rate': 0.0, 'init_cfg': None}
UNSHIFTED = {'unshifted_stages': (3,)}
QUANT = {'method': 'RepQ', 'w_bits': 8, 'a_bits': 8}
# relative (Frobenius), of any map: a value on a rounding border moves by a step of 1 / 255 of the range, block after
# block; torch's engine has one where the CPU adds in another order, and none in most images
LARGEST_ERROR, SMALLEST_ERROR = 2e-2, {'torch': 1e-4, 'kernels': 2e-2}
CASES = {
    'RetinaNet': (stock_config('swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'), {}),
    'Cascade Mask R-CNN': (REPOSITORY / 'configs/mixaq/cascade-mask-rcnn_swin-t_mixaq-ptq-w4a8.py', {}),
    'Mask2Former': (stock_config('mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py'), {}),
    'DINO': (stock_config('dino/dino-5scale_swin-l_8xb2-12e_coco.py'), {}),
    'a classifier': (stock_config('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'), {'out_indices': (3,), **UNSHIFTED}),
}


@pytest.mark.parametrize(('config', 'options'), CASES.values(), ids=CASES)
def test_the_integer_backbone_is_the_simulated_one(config, options):
    stock = {**Config.fromfile(config).model.backbone, **SHRUNK, **options}
    for key in ('type', 'quant', 'convert_weights', 'low_ratios', 'prune_ratios'):
        stock.pop(key, None)
    torch.manual_seed(0)
    model = TwoBranchSwin(**stock, quant=QUANT).eval()
    Calibrator(model).run([torch.randn(1, 3, 64, 64)])
    engines = ['torch', *(['kernels'] if load()[0] is not None else [])]
    images = torch.randn(4, 1, 3, 64, 64)
    for engine in engines:
        twin = IntegerSwin(**stock, engine=engine)
        twin.load_state_dict(convert_backbone(model))
        errors = []
        for low, prune in ((0.5, 0.0), (0.3, 0.3)):
            model.set_ratios(low, prune)
            twin.set_ratios(low, prune)
            with torch.no_grad():
                errors += [relative_error(model(image), twin(image)) for image in images]
        assert max(errors) < LARGEST_ERROR
        assert min(errors) < SMALLEST_ERROR[engine]
