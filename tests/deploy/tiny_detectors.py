"""Quantized detectors of the kinds that convert, shrunk, calibrated on noise."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from tiny_detector import stock_config, tiny_mask_rcnn
from torch import nn

from mixaq_mmdet.engine.calibration import Calibrator

register_all_modules()

WIDTH, CLASSES = 16, 3
BACKBONE = dict(type='TwoBranchSwin', embed_dims=16, quant=dict(method='MinMax', w_bits=8, a_bits=8), low_ratios=0.4)
QUANT: dict[str, dict[str, Any]] = {
    'RepQ W4A8': dict(method='RepQ', w_bits=4, a_bits=8),
    'asymmetric W8A8': dict(method='MinMax', w_bits=8, a_bits=8, deconvolution=True),
    'LSQ W4A8': dict(method='LSQ', w_bits=4, a_bits=8, deconvolution=True),
    'OFQ W8A4': dict(method='OFQ', w_bits=8, a_bits=4, deconvolution=True),
    'RepQ W4A8 and deconvolution': dict(method='RepQ', w_bits=4, a_bits=8, deconvolution=True),
}


def mask_rcnn(**neck: Any) -> Config:
    model = tiny_mask_rcnn(**BACKBONE)
    model.roi_head.mask_head.num_convs = 2
    model.neck.update(in_channels=[WIDTH * 2**stage for stage in range(4)], **neck)
    return model


def four_convs() -> Config:
    model = mask_rcnn()
    model.roi_head.bbox_head.update(type='Shared4Conv1FCBBoxHead', conv_out_channels=8)
    return model


def cascade() -> Config:
    model = mask_rcnn()
    stock = Config.fromfile(stock_config('_base_/models/cascade-mask-rcnn_r50_fpn.py')).model
    model.type, roi_head = stock.type, stock.roi_head
    roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = 8
    for head in roi_head.bbox_head:
        head.update(in_channels=8, fc_out_channels=16, num_classes=CLASSES)
    roi_head.mask_head.update(num_convs=2, in_channels=8, conv_out_channels=8, num_classes=CLASSES)
    model.roi_head = roi_head
    model.train_cfg.rcnn = [model.train_cfg.rcnn] * 3
    return model


def retinanet(**neck: Any) -> Config:
    model = Config.fromfile(stock_config('_base_/models/retinanet_r50_fpn.py')).model
    model.backbone = tiny_mask_rcnn(**BACKBONE).backbone
    model.neck.update(in_channels=[WIDTH * 2**stage for stage in range(4)], out_channels=8)
    if neck:
        model.neck = dict(in_channels=model.neck.in_channels, out_channels=8, num_outs=5, **neck)
    model.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=2, num_classes=CLASSES)
    model.test_cfg.update(score_thr=0.0, max_per_img=10)
    return model


DETECTORS = {
    'Mask R-CNN': mask_rcnn,
    'PAFPN': lambda: mask_rcnn(type='PAFPN'),
    '4conv1fc': four_convs,
    'Cascade Mask R-CNN': cascade,
    'RetinaNet': retinanet,
    'ChannelMapper': lambda: retinanet(type='ChannelMapper', kernel_size=1),
}


def normed() -> Config:
    """With BatchNorm behind the convolutions of neck, box head and mask head."""
    model = four_convs()
    norm = dict(norm_cfg=dict(type='BN'))
    for part in (model.neck, model.roi_head.bbox_head, model.roi_head.mask_head):
        part.update(norm)
    return model


def batch(seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((64, 64),)) -> dict[str, Any]:
    """Noise for ``test_step``."""
    generator = torch.Generator().manual_seed(seed)
    samples = [
        DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), pad_shape=size))
        for size in sizes
    ]
    inputs = [torch.randint(0, 255, (3, *size), generator=generator).byte() for size in sizes]
    return {'inputs': inputs, 'data_samples': samples}


@cache
def calibrated(detector: str, quant: str) -> nn.Module:
    """A detector of ``DETECTORS`` on the grids of ``QUANT``; shared, so leave it as it is."""
    cfg = {**DETECTORS, 'BatchNorm': normed}[detector]()
    cfg.update(type='QuantDetector', base=cfg.type, detector_quant=QUANT[quant])
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    with torch.no_grad():  # results that differ from each other
        for path, layer in model.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.normal_(0, 1)
                layer.bias.normal_(0, 0.3)
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 2)
            if not path.startswith('backbone') and isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.normal_(0, 1.5 / layer.weight[0].numel() ** 0.5)
                if layer.bias is not None:
                    layer.bias.normal_(0, 0.3)
    Calibrator(model.eval()).run([batch(1), batch(2)])
    return model.eval()
