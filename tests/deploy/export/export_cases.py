"""Small calibrated models that the tests of the export share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from tiny_backbone import backbone, images
from tiny_detector import stock_config, tiny_mask_rcnn, two_stages
from torch import nn

from mixaq_mmdet.engine.calibration.calibrator import Calibrator

SHAPE = (50, 67)
RECIPE = Path(__file__).parents[3] / 'configs/mini/mask-rcnn_swin-mini_ptq-w8a8-symmetric.py'
MIXED = {'low_ratios': 0.4, 'prune_ratios': 0.2}
ONE_STAGE = {'depths': (2,), 'num_heads': (1,), 'strides': (4,), 'out_indices': (0,)}
METHODS: dict[str, dict[str, Any]] = {
    'RepQ': {'method': 'RepQ', 'w_bits': 4, 'a_bits': 8, 'low_a_bits': 4},
    'asymmetric 8 bits': {'method': 'MinMax', 'w_bits': 8, 'a_bits': 8},
    'LSQ': {'method': 'LSQ', 'w_bits': 4, 'a_bits': 4},
    'OFQ': {'method': 'OFQ', 'w_bits': 4, 'a_bits': 4},
    'AIQViT': {'method': 'AIQViT', 'w_bits': 4, 'a_bits': 4, 'steps': 2, 'search_steps': 1},
    # the shipped recipe whose grids TensorRT has nodes for
    'symmetric': Config.fromfile(RECIPE).model.backbone.quant.to_dict(),
}


def calibrated(name: str, **options: Any) -> nn.Module:
    """A tiny quantized backbone with windows in every tier."""
    model = backbone(METHODS[name], **{**MIXED, **options})
    Calibrator(model).run(images())
    return model


def detector_config(name: str) -> Config:
    """Tiny Mask R-CNN, Faster R-CNN, Cascade Mask R-CNN or RetinaNet on a two-branch backbone."""
    tiny = two_stages(tiny_mask_rcnn(type='TwoBranchSwin', **MIXED))
    if name == 'mask':
        return tiny
    if name == 'faster':
        tiny.type = 'FasterRCNN'
        tiny.roi_head.mask_head = tiny.roi_head.mask_roi_extractor = None
        return tiny
    if name == 'retina':
        model = Config.fromfile(stock_config('_base_/models/retinanet_r50_fpn.py')).model
        model.neck.update(in_channels=tiny.neck.in_channels, out_channels=8, start_level=0)
        model.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=3)
        model.test_cfg.update(nms_pre=100, score_thr=0.01, max_per_img=10)
    else:
        model = Config.fromfile(stock_config('_base_/models/cascade-mask-rcnn_r50_fpn.py')).model
        model.neck, model.test_cfg = tiny.neck, tiny.test_cfg
        model.rpn_head.update(in_channels=8, feat_channels=8)
        head = model.roi_head
        head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 8
        for box_head in head.bbox_head:
            box_head.update(in_channels=8, fc_out_channels=16, num_classes=3, reg_class_agnostic=False)
        head.mask_head.update(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3)
    model.backbone, model.data_preprocessor = tiny.backbone, tiny.data_preprocessor
    return two_stages(model)


def detector(name: str, seed: int = 0, quant: dict[str, Any] | None = None) -> Any:
    """Built, with heads whose boxes and scores differ; quantized as a whole and not calibrated with ``quant``."""
    init_default_scope('mmdet')
    torch.manual_seed(seed)
    config = detector_config(name)
    if quant is not None:
        config.backbone.quant = quant
        config.update(base=config.type, type='QuantDetector', detector_quant=quant)
    model = MODELS.build(config).eval()
    for path, parameter in model.named_parameters():
        if ('rpn' in path or 'head' in path) and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02 if name == 'retina' else 0.2)
    return model
