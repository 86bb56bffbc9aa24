"""A detector whose last steps run by the portable kernels finds what it found before."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.models.roi_heads.bbox_heads import SABLHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.structures import InstanceData
from tiny_detector import tiny_mask_rcnn
from torch import nn

from mixaq_mmdet.deploy.kernels.portable import load_portable
from mixaq_mmdet.deploy.parts import heads, use_kernels

KERNELS, REASON = load_portable()
pytestmark = pytest.mark.skipif(KERNELS is None, reason=f'no portable kernels here: {REASON}')
SIZES = ((64, 96), (96, 64))


def mask_rcnn(**test_cfg: object) -> nn.Module:
    config = ConfigDict(tiny_mask_rcnn(), _scope_='mmdet')
    config.test_cfg.rcnn.update(test_cfg)
    return built(config)


def retinanet() -> nn.Module:
    config = get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
    config.update(_scope_='mmdet')
    config.backbone = ConfigDict(type='ResNet', depth=18, base_channels=8, out_indices=(0, 1, 2, 3), init_cfg=None)
    config.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    config.bbox_head.update(in_channels=16, feat_channels=16, num_classes=3)
    config.test_cfg.update(score_thr=0.0, max_per_img=50)
    return built(config)


def cascade() -> nn.Module:
    config = get_config('mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py').model
    config.update(_scope_='mmdet')
    config.backbone = ConfigDict(type='ResNet', depth=18, base_channels=8, out_indices=(0, 1, 2, 3), init_cfg=None)
    config.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    config.rpn_head.update(in_channels=16, feat_channels=16)
    config.roi_head.bbox_roi_extractor.out_channels = 16
    for head in config.roi_head.bbox_head:
        head.update(in_channels=16, fc_out_channels=32, num_classes=3)
    config.test_cfg.rcnn.score_thr = 0.0
    return built(config)


def built(config: ConfigDict) -> nn.Module:
    torch.manual_seed(0)
    return MODELS.build(config).eval()


def images(sizes: tuple[tuple[int, int], ...] = SIZES, scale: float = 1.0) -> dict:
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    samples = []
    for size in sizes:
        original = tuple(round(side / scale) for side in size)
        meta = dict(img_shape=size, ori_shape=original, scale_factor=(scale, scale))
        samples.append(DetDataSample(metainfo=meta))
    return dict(inputs=pixels, data_samples=samples)


@torch.no_grad()
def found(model: nn.Module, batch: dict) -> list[InstanceData]:
    return [sample.pred_instances for sample in model.test_step(copy.deepcopy(batch))]


def assert_same(ours: InstanceData, stock: InstanceData) -> None:
    assert set(ours.keys()) == set(stock.keys())
    assert torch.equal(ours.labels, stock.labels)
    assert ours.labels.dtype == stock.labels.dtype
    torch.testing.assert_close(ours.scores, stock.scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.bboxes, stock.bboxes, rtol=1e-4, atol=1e-3)
    if 'masks' in stock:
        assert ours.masks.dtype == stock.masks.dtype
        assert ours.masks.shape == stock.masks.shape
        # RoIAlign differs by rounding, which moves a pixel whose probability is the threshold
        assert (ours.masks != stock.masks).sum() <= 1e-4 * stock.masks.numel()


@pytest.mark.parametrize('scale', [1.0, 0.5])
@pytest.mark.parametrize('make', [mask_rcnn, retinanet, cascade], ids=['Mask R-CNN', 'RetinaNet', 'Cascade R-CNN'])
def test_detections_are_stocks(make, scale):
    stock = make(score_thr=0.0) if make is mask_rcnn else make()
    ours = copy.deepcopy(stock)
    assert use_kernels(ours)
    batch = images(scale=scale)
    for mine, theirs in zip(found(ours, batch), found(stock, batch), strict=True):
        assert len(theirs) >= 10
        assert_same(mine, theirs)


@pytest.mark.parametrize('wanted', [2, 7, 40])
def test_proposals_are_the_best_of_each_level(wanted):
    stock = mask_rcnn(score_thr=0.0)
    stock.rpn_head.test_cfg.nms_pre = wanted
    ours = copy.deepcopy(stock)
    use_kernels(ours)
    with torch.no_grad():
        maps = stock.extract_feat(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
        samples = images()['data_samples']
        for mine, theirs in zip(*(model.rpn_head.predict(maps, samples) for model in (ours, stock)), strict=True):
            assert torch.equal(mine.bboxes, theirs.bboxes)
            assert torch.equal(mine.scores, theirs.scores)
            assert torch.equal(mine.labels, theirs.labels)


DENSE = {
    'RetinaHead': dict(num_classes=3, in_channels=8, feat_channels=8, norm_cfg=None),
    'FCOSHead': dict(num_classes=3, in_channels=8, feat_channels=8, norm_cfg=None),
    'GFLHead': dict(
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        norm_cfg=None,
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
        ),
    ),
}


@pytest.mark.parametrize('threshold', [0.0, 0.5])
@pytest.mark.parametrize('wanted', [2, 7, 40])
@pytest.mark.parametrize('name', DENSE)
def test_dense_heads_keep_the_best_of_each_level(name, wanted, threshold):
    test_cfg = dict(
        nms_pre=wanted, score_thr=threshold, min_bbox_size=0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
    )
    torch.manual_seed(0)
    stock = MODELS.build(dict(type=name, _scope_='mmdet', test_cfg=ConfigDict(test_cfg), **DENSE[name])).eval()
    ours = copy.deepcopy(stock)
    use_kernels(ours)
    assert ours._reads_as_stock() is (name != 'GFLHead')
    maps = [torch.randn(2, 8, 8 // 2**level, 12 // 2**level) for level in range(3)] + [torch.randn(2, 8, 1, 1)] * 2
    metas = [sample.metainfo for sample in images()['data_samples']]
    with torch.no_grad():
        scores, *others = stock(maps)
        outputs = [[3 * torch.randn_like(level) for level in scores], *others]
        results = [head.predict_by_feat(*copy.deepcopy(outputs), batch_img_metas=metas) for head in (ours, stock)]
    for mine, theirs in zip(*results, strict=True):
        assert len(theirs) > 1
        assert_same(mine, theirs)


def test_anchors_are_kept_for_a_few_sizes():
    model = mask_rcnn()
    use_kernels(model)
    generator = model.rpn_head.prior_generator
    stock = mask_rcnn().rpn_head.prior_generator
    for side in (8, 9, 8, 10, 11, 12, 13, 8):
        sizes = [(side, 2 * side)] * generator.num_levels
        for mine, theirs in zip(*(one.grid_priors(sizes, device='cpu') for one in (generator, stock)), strict=True):
            assert torch.equal(mine, theirs)
    assert generator.grid_priors(sizes, device='cpu')[0] is generator.grid_priors(sizes, device='cpu')[0]
    assert len(generator._kept) == generator.KEPT
    assert not hasattr(copy.deepcopy(generator), '_kept')


def test_no_detections():
    stock = mask_rcnn(score_thr=1.0)
    ours = copy.deepcopy(stock)
    use_kernels(ours)
    for mine, theirs in zip(found(ours, images()), found(stock, images()), strict=True):
        assert len(theirs) == 0
        assert_same(mine, theirs)


def test_no_proposals():
    stock = mask_rcnn()
    stock.rpn_head.test_cfg.min_bbox_size = 1000
    ours = copy.deepcopy(stock)
    use_kernels(ours)
    for mine, theirs in zip(found(ours, images()), found(stock, images()), strict=True):
        assert len(theirs) == 0
        assert_same(mine, theirs)


def test_what_changes_and_what_does_not():
    model = mask_rcnn()
    names, keys = {path: type(module) for path, module in model.named_modules()}, list(model.state_dict())
    lines = use_kernels(model)
    assert [line.split(':')[0] for line in lines] == [
        'rpn_head', 'roi_head.bbox_roi_extractor', 'roi_head.bbox_head', 'roi_head.mask_roi_extractor',
        'roi_head.mask_head',
    ]  # fmt: skip
    assert all(isinstance(module, names[path]) for path, module in model.named_modules())
    assert list(model.state_dict()) == keys
    assert use_kernels(model) == [], 'once is enough'


def test_a_head_with_steps_of_its_own_keeps_them():
    assert heads._mixin_of(SABLHead) is None


def test_masks_without_kernels_are_stocks(monkeypatch):
    stock = mask_rcnn(score_thr=0.0)
    ours = copy.deepcopy(stock)
    use_kernels(ours)
    monkeypatch.setattr(heads, 'load_portable', lambda: (None, 'as if there were no compiler'))
    for mine, theirs in zip(found(ours, images()), found(stock, images()), strict=True):
        assert_same(mine, theirs)
