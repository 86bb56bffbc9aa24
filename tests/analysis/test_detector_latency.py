"""analysis/detector_latency.py: every part outside the backbone is timed, and nothing stays changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from tiny_detector import stock_config, tiny_config, tiny_mask_rcnn
from tool_process import load_tool
from torch import nn

from mixaq_mmdet.analysis import latency
from mixaq_mmdet.analysis.detector_latency import PARTS, REST, DetectorWork, all_scores
from mixaq_mmdet.analysis.latency import LatencyTable, measure

TWO_STAGES = {name for name in PARTS if not name.startswith('dense')}
QUANT = dict(method='MinMax', w_bits=8, a_bits=8)


def detector(**edits) -> nn.Module:
    model = tiny_mask_rcnn(type='TwoBranchSwin')
    model.test_cfg.rcnn.score_thr = 2.0  # nothing is found, unless all scores count
    model.update(edits)
    torch.manual_seed(0)
    return MODELS.build(model).eval()


def retinanet() -> nn.Module:
    model = Config.fromfile(stock_config('_base_/models/retinanet_r50_fpn.py')).model
    model.backbone = tiny_mask_rcnn(type='TwoBranchSwin').backbone
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    model.bbox_head.update(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=3)
    return MODELS.build(model).eval()


def cascade() -> nn.Module:
    model = Config.fromfile(stock_config('_base_/models/cascade-mask-rcnn_r50_fpn.py')).model
    model.backbone = tiny_mask_rcnn(type='TwoBranchSwin').backbone
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=8)
    model.rpn_head.update(in_channels=8, feat_channels=8)
    model.roi_head.bbox_roi_extractor.out_channels = model.roi_head.mask_roi_extractor.out_channels = 8
    for head in model.roi_head.bbox_head:
        head.update(in_channels=8, fc_out_channels=16, num_classes=3)
    model.roi_head.mask_head.update(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=3)
    model.test_cfg.rcnn.max_per_img = 5
    return MODELS.build(model).eval()


def changed(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if {'forward', 'predict_by_feat'} & vars(module).keys()]


@pytest.mark.parametrize(
    ('make', 'expected'),
    [
        (detector, TWO_STAGES),
        (cascade, TWO_STAGES),
        (retinanet, {'neck', 'dense head, layers', 'dense head, NMS'}),
    ],
)
@torch.no_grad()
def test_every_part_is_timed_once_a_round(make, expected):
    model = make()
    work = DetectorWork(model, torch.randn(1, 3, 64, 64))
    for _ in range(3):
        work.outside()
    parts = work.parts()
    assert set(parts) == {*expected, REST}
    assert all(len(seconds) == 2 for seconds in parts.values())
    assert all(value > 0 for seconds in parts.values() for value in seconds)
    assert changed(model) == []


@torch.no_grad()
def test_the_backbone_does_not_run_again(monkeypatch):
    model = detector()
    work = DetectorWork(model, torch.randn(1, 3, 64, 64))
    monkeypatch.setattr(type(model.backbone), 'forward', None)
    work.outside()
    with pytest.raises(TypeError):
        work.whole(model.backbone.low_ratios, model.backbone.prune_ratios)


def test_what_fails_leaves_the_detector_as_it_was():
    model = detector()
    with all_scores(model):
        assert model.roi_head.test_cfg.score_thr == model.test_cfg.rcnn.score_thr == 0
    work = DetectorWork(model, torch.randn(1, 3, 64, 64))
    work.maps = ()
    with pytest.raises(AssertionError):
        work.outside()
    assert changed(model) == []
    assert model.roi_head.test_cfg.score_thr == model.test_cfg.rcnn.score_thr == 2.0


def test_predictions_hold_the_whole_detector(monkeypatch):
    monkeypatch.setattr(latency, 'GRID', ((0.0, 0.0), (0.5, 0.2)))
    model = detector()
    ratios = [0.0] * model.backbone.num_pairs
    table = measure(model.backbone, (64, 64), rounds=2, vectors=[(ratios, ratios)], detector=model)
    assert table.scope == 'detector'
    constants = {entry.piece: entry.ms for entry in table.entries if entry.stage < 0}
    assert constants.keys() - {'rest'} == {*TWO_STAGES, REST}
    alone = LatencyTable(
        table.shape, table.depths, table.windows, [e for e in table.entries if e.stage >= 0 or e.piece == 'rest']
    )
    outside = sum(entry.ms for entry in table.entries if entry.piece in {*TWO_STAGES, REST})
    assert table.predict(ratios, ratios) == pytest.approx(alone.predict(ratios, ratios) + outside)
    assert table.wholes[0].ms > 0
    again = LatencyTable.from_dict(json.loads(json.dumps(table.as_dict())))
    assert (again.scope, again.predict(ratios, ratios)) == ('detector', table.predict(ratios, ratios))


@pytest.mark.parametrize('flags', [[], ['--integer']])
def test_the_command_measures_whole_detectors(flags, tiny_coco, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = tiny_config(tiny_coco, tmp_path)
    cfg.model.backbone.update(type='TwoBranchSwin', quant=QUANT)
    cfg.model.update(type='QuantDetector', base=cfg.model.type, detector_quant=QUANT)
    cfg.model.test_cfg.rcnn.score_thr = 0.9
    cfg.dump('config.py')
    given = ['--shape', '64', '64', '--rounds', '1', '--check', '1', '--detector', *flags, '--out', 'found.json']
    load_tool('analyze.py').main(['latency', 'config.py', *given])
    found = json.loads(Path('found.json').read_text())
    assert found['scope'] == 'detector'
    assert found['path'].startswith('integer' if flags else 'simulated')
    assert {entry['piece'] for entry in found['entries']} >= {*TWO_STAGES, REST}
    assert len(found['checks']) == 1
    assert Path('found.md').read_text().startswith('# Latency of the detector')
    printed = capsys.readouterr().out
    assert 'masks, pasting' in printed
    assert 'detector, input 64 x 64' in printed
