"""Layers that a method cannot replace are named in the log."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from tiny_backbone import ARCHITECTURE
from tiny_detector import tiny_mask_rcnn
from torch import nn

from mixaq_mmdet.models import TwoBranchSwin
from mixaq_mmdet.models.two_branch_stage import TwoBranchStage

register_all_modules()


def test_the_log_names_them(monkeypatch):
    said = []
    monkeypatch.setattr('mixaq_mmdet.models.kept_float.print_log', lambda text, logger: said.append(text))
    cfg = tiny_mask_rcnn(type='TwoBranchSwin', quant={'method': 'MinMax'})
    cfg.roi_head.bbox_head.update(cls_predictor_cfg={'type': 'NormedLinear'})
    cfg.update(type='QuantDetector', base=cfg.type, detector_quant={'method': 'MinMax'})
    model = MODELS.build(cfg)
    assert said == ['roi_head.bbox_head.fc_cls stays float: NormedLinear has a forward of its own']
    assert model.detector_quant_method.kept_float == [('roi_head.bbox_head.fc_cls', 'NormedLinear')]
    assert model.backbone.quant_method.kept_float == []


def test_a_backbone_names_them_too(monkeypatch):
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    said = []
    monkeypatch.setattr('mixaq_mmdet.models.kept_float.print_log', lambda text, logger: said.append(text))
    convert = TwoBranchStage.convert

    def converted(stage, index):
        convert(stage, index)
        if stage.downsample is not None:
            stage.downsample.reduction = Own(4, 4)

    monkeypatch.setattr(TwoBranchStage, 'convert', staticmethod(converted))
    TwoBranchSwin(**ARCHITECTURE, quant={'method': 'MinMax'})
    assert said == ['stages.0.downsample.reduction stays float: Own has a forward of its own']
