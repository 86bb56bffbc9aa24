"""Tiny data and a tiny stock Mask R-CNN Swin for tests: a training step takes well under a second on a CPU.

``tests/`` is on ``sys.path`` while pytest runs (it holds ``conftest.py``), so any test may write::

    from tiny_detector import tiny_config, tiny_mask_rcnn, write_tiny_coco

or take the fixtures ``tiny_coco`` (folder of a written data set, shared by the session: read only) and ``tiny_cfg``
(a fresh ``mmengine.Config`` on it, work_dir in ``tmp_path``) from ``conftest.py``.

- ``write_tiny_coco(root)``: PNG images with filled rectangles and ellipses, ``annotations.json`` in COCO format with
  boxes, polygon masks and RLE masks, three classes named ``CLASSES``.
- ``tiny_mask_rcnn(**backbone)``: the model part of a stock config, shrunk; keywords edit the backbone.
- ``two_stages(model)``: a still smaller one of it, for tests whose time grows with the number of layers.
- ``tiny_config(root, work_dir, **top_level)``: a whole config for Runner or ``tools/train.py`` (``.dump`` writes it).
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from pycocotools import mask as coco_mask

CLASSES = ('box', 'disc', 'bar')
IMAGE_SIZE = 64


def _draw_object(canvas: np.ndarray, category: int, rng: np.random.Generator) -> tuple[np.ndarray, list[list[float]]]:
    """Paint one object; returns its mask (H, W) uint8 and, for rectangles, its polygon (empty for ellipses)."""
    size = canvas.shape[0]
    width, height = (int(side) for side in rng.integers(size // 5, size // 2, 2))
    if category == 3:
        height = max(6, height // 3)
    left, top = int(rng.integers(0, size - width)), int(rng.integers(0, size - height))
    mask = np.zeros(canvas.shape[:2], np.uint8)
    if category == 2:
        cv2.ellipse(mask, (left + width // 2, top + height // 2), (width // 2, height // 2), 0, 0, 360, 1, -1)
        polygon = []
    else:
        mask[top : top + height, left : left + width] = 1
        right, bottom = left + width, top + height
        polygon = [[float(v) for v in (left, top, right, top, right, bottom, left, bottom)]]
    canvas[mask > 0] = rng.integers(0, 256, 3)
    return mask, polygon


def write_tiny_coco(root: str | Path, num_images: int = 4, size: int = IMAGE_SIZE, seed: int = 0) -> Path:
    """Write ``num_images`` square images and ``annotations.json`` below ``root``; returns ``root``."""
    root = Path(root)
    (root / 'images').mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        canvas = rng.integers(90, 130, (size, size, 3)).astype(np.uint8)
        for category in (1, 2, 3)[: int(rng.integers(2, 4))]:
            mask, polygon = _draw_object(canvas, category, rng)
            rle = coco_mask.encode(np.asfortranarray(mask))
            rle['counts'] = rle['counts'].decode()
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': category,
                    'bbox': [float(v) for v in coco_mask.toBbox(rle)],
                    'area': int(mask.sum()),
                    'iscrowd': 0,
                    'segmentation': polygon or rle,
                }
            )
        name = f'{image_id:06d}.png'
        cv2.imwrite(str(root / 'images' / name), canvas)
        images.append({'id': image_id, 'file_name': name, 'width': size, 'height': size})
    categories = [{'id': index, 'name': name} for index, name in enumerate(CLASSES, 1)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (root / 'annotations.json').write_text(json.dumps(content))
    return root


def tiny_mask_rcnn(**backbone: Any) -> Config:
    """The ``model`` of the stock Mask R-CNN config with an 8-channel Swin; keywords are edits to ``model.backbone``."""
    model = Config.fromfile(stock_config('_base_/models/mask-rcnn_r50_fpn.py')).model
    model.backbone = {
        'type': 'SwinTransformer',
        'embed_dims': 8,
        'depths': (2, 2, 2, 1),
        'num_heads': (1, 2, 4, 8),
        'window_size': 4,
        'drop_path_rate': 0.1,
        'out_indices': (0, 1, 2, 3),
        'convert_weights': False,
        'init_cfg': None,
        **backbone,
    }
    widths = [model.backbone.embed_dims * 2**stage for stage in range(4)]
    model.neck.update(in_channels=widths, out_channels=8)
    model.rpn_head.update(in_channels=8, feat_channels=8)
    head = model.roi_head
    head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 8
    head.bbox_head.update(in_channels=8, fc_out_channels=16, num_classes=len(CLASSES))
    head.mask_head.update(num_convs=1, in_channels=8, conv_out_channels=8, num_classes=len(CLASSES))
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    model.train_cfg.rcnn.sampler.num = 32
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=20)
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=10)
    return model


def two_stages(model: Config) -> Config:
    """``tiny_mask_rcnn()`` or a detector like it, in place, with three blocks and three levels: graphs are small."""
    model.backbone.update(depths=(2, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1))
    model.neck.update(in_channels=[model.backbone.embed_dims, 2 * model.backbone.embed_dims], num_outs=3)
    dense = model.rpn_head if 'rpn_head' in model else model.bbox_head
    dense.anchor_generator.strides = [4, 8, 16]
    for name, part in model.get('roi_head', {}).items():
        if name.endswith('roi_extractor') and part is not None:
            part.featmap_strides = [4, 8]
    return model


def stock_config(path: str) -> str:
    """Path of a config that mmdet ships."""
    return str(Path(find_spec('mmdet').origin).parent / '.mim' / 'configs' / path)


def _dataloader(root: Path, pipeline: list[dict], train: bool) -> dict[str, Any]:
    dataset = {
        'type': 'CocoDataset',
        'data_root': str(root),
        'ann_file': 'annotations.json',
        'data_prefix': {'img': 'images/'},
        'metainfo': {'classes': CLASSES},
        'test_mode': not train,
        'pipeline': pipeline,
    }
    return {
        'batch_size': 2 if train else 1,
        'num_workers': 0,
        'persistent_workers': False,
        'sampler': {'type': 'DefaultSampler', 'shuffle': train},
        'dataset': dataset,
    }


def tiny_config(root: str | Path, work_dir: str | Path, **top_level: Any) -> Config:
    """A config that trains two epochs on ``write_tiny_coco(root)``; keywords replace or merge into top-level keys."""
    root = Path(root).resolve()
    cfg = Config.fromfile(stock_config('_base_/default_runtime.py'))
    load = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    train_pipeline = [*load, {'type': 'RandomFlip', 'prob': 0.5}, {'type': 'PackDetInputs'}]
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    resize = {'type': 'Resize', 'scale': (IMAGE_SIZE, IMAGE_SIZE), 'keep_ratio': True}
    test_pipeline = [load[0], resize, load[1], {'type': 'PackDetInputs', 'meta_keys': meta_keys}]
    evaluator = {'type': 'CocoMetric', 'ann_file': str(root / 'annotations.json'), 'metric': ['bbox', 'segm']}
    cfg.merge_from_dict(
        {
            'custom_imports': {'imports': ['mixaq_mmdet'], 'allow_failed_imports': False},
            'model': tiny_mask_rcnn(),
            'train_dataloader': _dataloader(root, train_pipeline, train=True),
            'val_dataloader': _dataloader(root, test_pipeline, train=False),
            'test_dataloader': _dataloader(root, test_pipeline, train=False),
            'val_evaluator': evaluator,
            'test_evaluator': evaluator,
            'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 2, 'val_interval': 2},
            'val_cfg': {'type': 'ValLoop'},
            'test_cfg': {'type': 'TestLoop'},
            'optim_wrapper': {
                'type': 'OptimWrapper',
                'optimizer': {'type': 'AdamW', 'lr': 0.001, 'weight_decay': 0.05},
            },
            'param_scheduler': [{'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 4}],
            'default_hooks.logger.interval': 1,
            'randomness': {'seed': 0},
            'auto_scale_lr': {'enable': False, 'base_batch_size': 16},
            'work_dir': str(work_dir),
        }
    )
    cfg.merge_from_dict(top_level)
    return cfg
